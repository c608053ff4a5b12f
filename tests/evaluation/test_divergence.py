"""The divergence from the dense model against a direct computation over whole logits."""

import pytest
import torch
from conftest import FakeCorpus, tiny_model
from edits import edit_of, view_of

from linearpatch.data.reader import Reader
from linearpatch.evaluation import divergence as module
from linearpatch.evaluation.dense_states import DenseStates
from linearpatch.evaluation.divergence import Divergence, divergence_from_dense, quantile
from linearpatch.evaluation.evaluation import Subject
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.storage.cache import Cache


@pytest.fixture(scope="module")
def models():
    dense = decoder_of(tiny_model())
    return dense, decoder_of(view_of(dense, [2, 3], []))


@pytest.fixture
def ids():
    return torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(0))


def direct(dense, model, ids):
    """KL and agreement from logits in fp64 of all positions at once."""
    with torch.no_grad():
        expected, actual = (m.model(ids).logits.double() for m in (dense, model))
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), (expected.argmax(-1) == actual.argmax(-1)).double()


@pytest.mark.parametrize("rows", [2, 14, 10_000])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_equals_a_direct_computation(models, ids, rows, batch_size, monkeypatch):
    monkeypatch.setattr(module, "logit_rows", lambda *_: rows)
    steps = []
    dense, model = models
    kl, agrees = divergence_from_dense(DenseStates(dense, ids), model, batch_size=batch_size, on_step=steps.append)
    expected_kl, expected_agrees = direct(*models, ids)
    torch.testing.assert_close(kl.double(), expected_kl, atol=1e-5, rtol=1e-4)
    assert torch.equal(agrees.double(), expected_agrees)
    assert sum(steps) == len(ids)


def test_a_model_does_not_diverge_from_itself(models, ids):
    kl, agrees = divergence_from_dense(DenseStates(models[0], ids), models[0])
    assert kl.max() < 1e-5
    assert agrees.all()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_torch_s(share):
    values = torch.rand(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert quantile(values, share).item() == pytest.approx(values.flatten().quantile(share).item())


def test_the_metrics_are_those_of_the_positions(models):
    dense, pruned = models
    settings = Divergence(seq_len=40, num_blocks=3)
    model = LoadedModel(dense, byte_tokenizer(), "none")
    (measurement,) = settings.prepare("divergence", Reader(FakeCorpus(), "evaluation"))(model, Cache())
    subjects = [Subject("dense", dense, dense), Subject("pruned", pruned, dense, edit_of((2, 3)))]
    own, found = measurement.run(subjects, lambda count: None)
    ids = torch.tensor(byte_tokenizer()(FakeCorpus().documents()[0]).input_ids)[:120].view(3, 40)
    kl, agrees = direct(dense, pruned, ids)
    value = {name.removeprefix("divergence/fake/"): metric for name, metric in found.metrics.items()}
    assert value["kl"].value == pytest.approx(kl.mean().item(), rel=1e-4)
    assert value["kl"].stderr == pytest.approx((kl.mean(1).std() / 3**0.5).item(), rel=1e-3)
    assert value["kl_p90"].value == pytest.approx(kl.flatten().quantile(0.9).item(), rel=1e-3)
    assert value["agreement"].value == pytest.approx(agrees.mean().item())
    assert value["agreement"].unit == "share"
    assert found.arrays["divergence/fake/kl/windows"].shape == (3,)
    assert own.metrics["divergence/fake/kl"].value == 0
    assert own.metrics["divergence/fake/agreement"].value == 1


def count_passes(monkeypatch, dense):
    """The windows that the dense model runs from now on, one entry for each pass."""
    passes = []
    forward = type(dense).forward

    def counted(decoder, ids, **settings):
        if decoder is dense:
            passes.append(len(ids))
        return forward(decoder, ids, **settings)

    monkeypatch.setattr(type(dense), "forward", counted)
    return passes


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_dense_model_runs_once_for_all_models_and_runs(models, ids, on_disk, tmp_path, monkeypatch):
    dense, model = models
    expected = direct(dense, model, ids)
    passes = count_passes(monkeypatch, dense)
    cache = Cache(tmp_path if on_disk else None)
    for batch_size in (1, 2, 2):
        if on_disk:
            cache = Cache(tmp_path)  # another run
        states = DenseStates(dense, ids, cache=cache, key={"tokens": "these"})
        kl, agrees = divergence_from_dense(states, model, batch_size=batch_size)
        torch.testing.assert_close(kl.double(), expected[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(agrees.double(), expected[1])
    assert passes == [1, 1, 1]


def test_other_tokens_have_other_states(models, ids, monkeypatch):
    dense, model = models
    passes, cache = count_passes(monkeypatch, dense), Cache()
    for name in ("these", "those"):
        divergence_from_dense(DenseStates(dense, ids, cache=cache, key={"tokens": name}), model)
    assert len(passes) == 2 * len(ids)


def test_states_of_a_long_text_are_recomputed_and_not_kept(models, ids, tmp_path, monkeypatch):
    dense, model = models
    monkeypatch.setattr("linearpatch.evaluation.dense_states.MOST_BYTES", ids.numel() * dense.hidden_size * 4 - 1)
    passes = count_passes(monkeypatch, dense)
    for _ in range(2):
        divergence_from_dense(DenseStates(dense, ids, cache=Cache(tmp_path)), model)
    assert len(passes) == 2 * len(ids)
    assert not list(tmp_path.rglob("*.safetensors"))
