"""Each budget finds the size that direct counting or measuring of all sizes finds."""

from functools import partial
from math import exp

import pytest
import torch
from conftest import tiny_model
from small_runs import result, run

from linearpatch.budgets.amounts import BYTES, SECONDS, amount
from linearpatch.budgets.budget import Limits, fewest_within, most_within, sizes_of
from linearpatch.budgets.latency import Latency, read_table
from linearpatch.budgets.memory import Memory
from linearpatch.budgets.parameters import Parameters
from linearpatch.budgets.quality import Quality
from linearpatch.calibration.workspace import Workspace
from linearpatch.config import compose_experiment
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.streamline import Streamline
from linearpatch.results.budget import SizeSection

ORDER = [2, 4, 1, 3, 0]


def pruned(n):
    return Edit.of_layers(ORDER[:n])


@pytest.fixture
def uneven():
    """A model whose layers have different sizes: the last of the order is by far the largest."""
    model = tiny_model("llama")
    for index, layer in enumerate(model.model.layers):
        size = 16 * (1 + ORDER.index(index)) if index in ORDER else 16
        for name in ("gate_proj", "up_proj"):
            setattr(layer.mlp, name, torch.nn.Linear(32, size, bias=False))
        layer.mlp.down_proj = torch.nn.Linear(size, 32, bias=False)
    return decoder_of(model.eval().requires_grad_(False))


@pytest.mark.parametrize("share", [0.99, 0.9, 0.8, 0.7, 0.6, 0.5])
def test_parameters_against_counting_every_size(uneven, blocks, share):
    counts = {n: pruned(n).view(uneven).num_parameters() for n in range(1, 6)}
    limit = share * uneven.num_parameters
    expected = next((n for n, count in counts.items() if count <= limit), None)
    resolve = partial(Parameters(share).resolve, Workspace(uneven, blocks), range(1, 6), pruned)
    if expected is None:
        with pytest.raises(ConfigError, match="no number of removed layers is within"):
            resolve()
        return
    section = resolve()
    assert (section.num_pruned_layers, section.value, section.limit) == (expected, counts[expected], limit)
    assert {size.num_pruned_layers: size.value for size in section.sizes}.items() <= counts.items()
    if expected > 1:  # the record shows that one layer fewer isn't enough
        assert [size.is_within for size in section.sizes if size.num_pruned_layers == expected - 1] == [False]


def test_parameters_of_patches_count(decoder, blocks):
    """A map on the stream, here of 32 x 32 numbers, may need one layer more."""
    per_layer = sum(parameter.numel() for parameter in decoder.layers[0].parameters())
    workspace = Workspace(decoder, blocks)

    def patched(n):
        return LeastSquares(ridge=0.1, bias=True).repair(workspace, Edit.of_layers(range(1, n + 1)))

    limit = decoder.num_parameters - 2 * per_layer + 10
    assert Parameters(limit).resolve(workspace, range(1, 5), pruned).num_pruned_layers == 2
    section = Parameters(limit).resolve(workspace, range(1, 5), patched)
    assert section.num_pruned_layers == 3
    assert section.value == patched(3).view(decoder).num_parameters()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("share", [0.9, 0.6])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_memory_against_counting_bytes(family, blocks, share, batch):
    decoder = decoder_of(tiny_model(family))

    def counted(n):
        model = pruned(n).apply(decoder.model) if n else decoder.model
        cache = model(torch.zeros(batch, 20, dtype=torch.long), use_cache=True).past_key_values
        kept = sum(tensor.numel() * 4 for layer in cache.layers for tensor in (layer.keys, layer.values))
        return sum(parameter.numel() * 4 for parameter in model.parameters()) + kept

    section = Memory(share, length=20, batch_size=batch).resolve(Workspace(decoder, blocks), range(1, 6), pruned)
    assert section.dense == counted(0)
    assert section.value == counted(section.num_pruned_layers)
    assert section.num_pruned_layers == next(n for n in range(1, 6) if counted(n) <= share * counted(0))


def test_latency_from_a_table(decoder, blocks, tmp_path):
    table = tmp_path / "times.yaml"
    table.write_text("{0: 10ms, 2: 8ms, 5: 5ms}")
    assert read_table(str(table)) == {0: 0.010, 2: 0.008, 5: 0.005}
    for at_most, expected in ((0.9, 1), (0.8, 2), ("7.5ms", 3), ("7ms", 3), ("6.9ms", 4)):
        section = Latency(at_most, table=str(table)).resolve(Workspace(decoder, blocks), range(1, 6), pruned)
        assert section.num_pruned_layers == expected
    with pytest.raises(ConfigError, match="no number of removed layers"):
        Latency("4ms", table=str(table)).resolve(Workspace(decoder, blocks), range(1, 6), pruned)
    table.write_text("{2: 8ms, 5: 5ms}")
    with pytest.raises(ConfigError, match="with 0 for the dense model"):
        Latency(0.5, table=str(table))


def test_latency_is_measured_in_turns_with_the_dense_model(decoder, blocks, monkeypatch):
    """Times follow from the layers; the machine gets slower and slower, which the ratio doesn't see."""
    slower = iter(range(1, 10_000))

    def times(model, prompt, new_tokens):
        assert prompt.shape == (2, 8)
        seconds = model.num_layers * (1 + 0.001 * next(slower))
        return seconds, 10 * seconds * new_tokens

    monkeypatch.setattr("linearpatch.budgets.latency.generation_times", times)
    for phase in ("prefill", "decode"):
        budget = Latency(0.7, phase=phase, length=8, batch_size=2, rounds=4)
        section = budget.resolve(Workspace(decoder, blocks), range(1, 6), pruned)
        assert section.num_pruned_layers == 2
        assert section.value / section.dense == pytest.approx(4 / 6, rel=2e-3)


def test_a_size_that_was_fast_by_chance_is_not_taken(decoder, blocks, monkeypatch):
    """The first measurement without one layer is lucky; the second shows that it takes two."""
    lucky = [True]

    def times(model, prompt, new_tokens):
        seconds = model.num_layers * (0.8 if model.num_layers == 5 and lucky[0] else 1)
        return seconds, seconds

    monkeypatch.setattr("linearpatch.budgets.latency.generation_times", times)
    measured = []
    turns = Latency._times

    def counted(self, decoders):
        found = turns(self, decoders)
        measured.append([one.num_layers for one in decoders])
        lucky[0] = [6, 5] not in measured
        return found

    monkeypatch.setattr(Latency, "_times", counted)
    budget = Latency(0.7, phase="prefill", length=8, rounds=2)
    section = budget.resolve(Workspace(decoder, blocks), range(1, 6), pruned)
    assert section.num_pruned_layers == 2
    assert [(size.num_pruned_layers, size.is_within) for size in section.sizes] == [(1, False), (2, True)]
    assert measured.count([6, 4]) == 2  # it was measured twice, too


@pytest.fixture
def held_out():
    return TokenBlocks(torch.randint(3, 300, (5, 12), generator=torch.Generator().manual_seed(7)), "random/test")


def test_quality_against_the_models_themselves(decoder, blocks, held_out):
    """Perplexity, divergence and accuracy of two removed layers, computed from whole logits."""
    workspace = Workspace(decoder, blocks, held_out=held_out)
    ids = held_out.ids
    dense, model = (edit.apply(decoder.model)(ids).logits.double().log_softmax(-1) for edit in (Edit(), pruned(2)))

    def losses(logits):
        return -logits[:, :-1].gather(-1, ids[:, 1:, None]).mean(dim=(1, 2))

    def accuracy(logits):
        return (logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean()

    expected = {
        "perplexity": exp((losses(model) - losses(dense)).mean()) - 1,
        "divergence": (dense.exp() * (dense - model)).sum(-1).mean().item(),
    }
    for measure, value in expected.items():
        measured, stderr = Quality(1.0, measure).limits(workspace, range(1, 6)).measure(pruned(2))
        assert measured == pytest.approx(value, rel=1e-4)
        assert stderr > 0
    difference = losses(model) - losses(dense)
    _, stderr = Quality(1.0, "perplexity").limits(workspace, range(1, 6)).measure(pruned(2))
    assert stderr == pytest.approx((difference.mean().exp() * difference.std() / 5**0.5).item(), rel=1e-4)
    likeliest = TokenBlocks(torch.cat([ids[:, :1], dense.argmax(-1)[:, :-1]], dim=1), "its own")  # or no token is right
    workspace = Workspace(decoder, blocks, held_out=likeliest)
    ids = likeliest.ids
    dense, model = (edit.apply(decoder.model)(ids).logits for edit in (Edit(), pruned(1)))
    measured, _ = Quality(1.0, "accuracy").limits(workspace, range(1, 6)).measure(pruned(1))
    assert accuracy(dense) > 0
    assert measured == pytest.approx(1 - (accuracy(model) / accuracy(dense)).item(), abs=1e-6)


def test_a_certain_size_has_its_interval_within_the_limit(decoder, blocks, held_out):
    workspace = Workspace(decoder, blocks, held_out=held_out)
    value, stderr = Quality(1.0).limits(workspace, range(1, 6)).measure(pruned(1))
    for margin, certain, expected in ((1.9, False, True), (1.9, True, False), (2.0, True, True)):
        sections = Quality(value + margin * stderr, certain=certain).resolve
        if not expected:
            with pytest.raises(ConfigError, match="with one layer removed"):
                sections(workspace, range(1, 2), pruned)
        else:
            assert sections(workspace, range(1, 2), pruned).num_pruned_layers == 1


def sizes_from(values):
    measured = []

    def size(n, limit):
        measured.append(n)
        return SizeSection(n, values[n - 1], None, values[n - 1] <= limit)

    return size, measured


@pytest.mark.parametrize("limit", [0.5, 1.5, 2.5, 5.5, 7.5, 8.5])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_most_layers_within_a_limit(limit, count):
    size, measured = sizes_from(list(range(1, count + 1)))
    found = most_within(range(1, count + 1), lambda n: size(n, limit), Limits(limit, 0, "", None))
    assert found == (min(int(limit), count) or None)
    assert len(measured) == len(set(measured)) <= 6


@pytest.mark.parametrize("estimate", [1, 3, 20])
@pytest.mark.parametrize("limit", [9.5, 5.5, 2.5, 1.0])
def test_the_fewest_layers_within_a_limit(limit, estimate):
    values = [9.0, 8.5, 7.0, 6.9, 4.0, 3.0, 2.0, 1.5]
    size, _ = sizes_from(values)
    found = fewest_within(range(1, 9), lambda n: size(n, limit), Limits(limit, 10.0, "", None, estimate))
    assert found == next((n + 1 for n, value in enumerate(values) if value <= limit), None)


def test_sizes_are_those_that_the_pruner_can_remove():
    assert sizes_of(Streamline(), 6) == range(1, 6)
    assert sizes_of(Streamline(protect_first=2, protect_last=1), 6) == range(1, 4)
    with pytest.raises(ConfigError, match="protect_first"):
        sizes_of(Streamline(protect_first=6), 6)


@pytest.mark.parametrize(
    ("value", "units", "expected"),
    [
        (0.5, BYTES, (0.5, True)),
        (2e9, BYTES, (2e9, False)),
        ("1.5GiB", BYTES, (1.5 * 2**30, False)),
        ("0.5", BYTES, (0.5, True)),
        ("12ms", SECONDS, (0.012, False)),
        (1, BYTES, (1.0, True)),
    ],
)
def test_amounts(value, units, expected):
    assert amount("x", value, units) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0, -1, "12 parsecs", "fast", True, None, float("nan")])
def test_what_is_no_amount_is_rejected(value):
    with pytest.raises(ConfigError, match=r"x is .* Allowed: a share"):
        amount("x", value, BYTES)


def test_a_time_needs_a_unit():
    with pytest.raises(ConfigError, match="or us, ms, s, such as 500ms"):
        Latency(12)


def test_a_run_has_one_of_a_number_and_a_budget():
    assert compose_experiment(["budget=memory"]).num_pruned_layers is None
    assert compose_experiment(["experiment=recommended", "budget=quality"]).num_pruned_layers is None
    assert compose_experiment(["budget=none"]).num_pruned_layers == 5
    for words in (["num_pruned_layers=5", "budget=parameters"], ["num_pruned_layers=null"]):
        with pytest.raises(ConfigError, match="num_pruned_layers="):
            compose_experiment(words)


def test_names_of_runs_follow_budgets():
    ids = {compose_experiment(["budget=parameters", f"budget.at_most={most}"]).run_id for most in (0.8, 0.7, "5M")}
    assert len(ids) == 3
    assert any("-parameters0.8-" in name for name in ids)


def test_a_run_within_a_budget_is_the_run_with_that_number(tmp_path):
    """Its record says what was bound; all else is what the number alone gives."""
    words = ("patch=lstsq", "eval=[ppl]", "cache_dir=cache")
    assert run("budget=parameters", "budget.at_most=0.75", "num_pruned_layers=null", *words, "output_dir=a") == 0
    bound = result("a")
    section = bound["budget"]
    n = section["num_pruned_layers"]
    assert section["method"] == "parameters"
    assert section["value"] <= section["limit"] == 0.75 * bound["model"]["num_parameters"]
    assert run(*words, f"num_pruned_layers={n}", "output_dir=b") == 0
    alone = result("b")
    assert alone["budget"] is None
    for part in ("pruning", "patch", "metrics"):
        assert bound[part] == alone[part]


def test_a_quality_budget_holds_tokens_out(tmp_path, said):
    words = ("patch=none", "eval=[]", "budget=quality", "num_pruned_layers=null", "calibration.held_out_blocks=2")
    assert run(*words, "budget.at_most=1e-9", "output_dir=a") == 1
    assert "with one layer removed the model has" in said()
    assert run(*words, "budget.measure=divergence", "budget.at_most=5", "output_dir=b") == 0
    section = result("b")["budget"]
    assert section["unit"] == "nats"
    assert section["value"] <= 5
    assert result("b")["calibration"]["held_out"]["num_blocks"] == 2
