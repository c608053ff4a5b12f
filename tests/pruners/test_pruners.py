"""Each pruner's choice from its score, its protection and its order."""

import pytest
import torch
from conftest import NUM_LAYERS

from linearpatch.calibration.statistics import LastTokenAngle, WindowCosine
from linearpatch.errors import ConfigError
from linearpatch.models.passes import record
from linearpatch.pruners.angular import Angular
from linearpatch.pruners.explicit import Explicit
from linearpatch.pruners.magnitude import Magnitude
from linearpatch.pruners.perplexity import Perplexity
from linearpatch.pruners.random import Random
from linearpatch.pruners.shortgpt import ShortGPT
from linearpatch.pruners.sleb import Sleb
from linearpatch.pruners.streamline import Streamline
from linearpatch.pruners.tail import Tail
from linearpatch.pruners.taylor import Taylor

ALL = (
    Streamline(), ShortGPT(), Sleb(), Taylor(1, 1), Magnitude(1, 1), Perplexity(), Angular(), Tail(), Random(),
    Explicit(layers=[3, 1]),
)  # fmt: skip


def ids(pruner):
    return type(pruner).__name__


@pytest.mark.parametrize("pruner", ALL, ids=ids)
def test_every_pruner_names_n_different_layers_and_leaves_the_protected(pruner, workspace):
    removed = pruner.select(workspace, 2).removed_layers
    assert len(set(removed)) == 2
    assert set(removed) <= set(pruner.candidates(NUM_LAYERS))


@pytest.mark.parametrize("pruner", ALL[:-1], ids=ids)
def test_protection_holds(pruner, workspace):
    from dataclasses import replace

    guarded = replace(pruner, protect_first=2, protect_last=2)
    assert set(guarded.select(workspace, 2).removed_layers) == {2, 3}


def test_streamline_takes_the_window_with_the_highest_cosine(workspace, decoder, blocks):
    streams = record(decoder, blocks.ids).streams
    cosines = [torch.cosine_similarity(streams[i], streams[i + 2], dim=-1).mean() for i in range(NUM_LAYERS - 1)]
    start = max(range(len(cosines)), key=lambda i: cosines[i])
    selection = Streamline().select(workspace, 2)
    assert selection.removed_layers == (start, start + 1)
    assert selection.scores.values == pytest.approx([1 - c.item() for c in cosines], abs=1e-5)


def test_the_last_window_is_a_candidate(workspace):
    selection = Streamline(protect_first=NUM_LAYERS - 2).select(workspace, 2)
    assert selection.removed_layers == (NUM_LAYERS - 2, NUM_LAYERS - 1)


def test_the_cosine_is_per_token_not_per_channel(workspace, decoder, blocks):
    """The official code takes it along the sequence for each channel, which is another number."""
    streams = record(decoder, blocks.ids).streams
    wrong = torch.cosine_similarity(streams[1], streams[3], dim=1).mean().item()
    found = workspace.statistic(WindowCosine(2))["cosine"][1].item()
    assert found != pytest.approx(wrong, abs=1e-3)


def test_shortgpt_ranks_layers_by_block_influence(workspace):
    influence = 1 - workspace.statistic(WindowCosine(1))["cosine"]
    assert list(ShortGPT().select(workspace, 3).removed_layers) == influence.argsort()[:3].tolist()


def test_angular_takes_the_smallest_angle_and_never_the_first_layer(workspace):
    angle = workspace.statistic(LastTokenAngle(2))["angle"]
    start = int(angle[1:].argmin()) + 1
    assert Angular().select(workspace, 2).removed_layers == (start, start + 1)


def test_perplexity_ranks_single_removals(workspace):
    losses = workspace.removal_losses([], range(NUM_LAYERS))
    expected = sorted(losses, key=lambda layer: losses[layer].loss)
    assert list(Perplexity().select(workspace, 4).removed_layers) == expected[:4]


def test_perplexity_scores_only_candidates(workspace):
    values = Perplexity(protect_first=1).select(workspace, 1).scores.values
    assert values[0] is None
    assert None not in values[1:]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_magnitude_sums_powers_of_weights(workspace, decoder, power):
    expected = [
        sum(w.double().abs().pow(power).sum().item() for n, w in layer.named_parameters() if not n.endswith("bias"))
        for layer in decoder.layers
    ]
    selection = Magnitude(protect_first=0, protect_last=0, power=power).select(workspace, 3)
    assert selection.scores.values == pytest.approx(expected, rel=1e-5)
    assert list(selection.removed_layers) == sorted(range(NUM_LAYERS), key=lambda i: expected[i])[:3]


def test_the_plus_of_taylor_and_magnitude():
    for pruner in (Taylor(), Magnitude()):
        assert pruner.candidates(32) == range(4, 30)


def test_tail_keeps_the_last_layer(workspace):
    assert Tail().select(workspace, 3).removed_layers == (4, 3, 2)


def test_random_is_seeded(workspace):
    assert Random(seed=1).select(workspace, 3).removed_layers == Random(seed=1).select(workspace, 3).removed_layers
    drawn = {Random(seed=seed).select(workspace, 3).removed_layers for seed in range(8)}
    assert len(drawn) > 1


def test_explicit_takes_a_prefix_of_the_list(workspace):
    assert Explicit(layers=[4, 0, 2]).select(workspace, 2).removed_layers == (4, 0)


@pytest.mark.parametrize(
    ("layers", "n", "message"),
    [
        ([1], 2, "names 1 layer,"),
        ([1, 1], 2, "names 1 layer,"),
        ([1, 9], 2, r"holds \[9\]"),
        ([], 1, "names 0"),
    ],
)
def test_explicit_rejects_impossible_lists(layers, n, message):
    with pytest.raises(ConfigError, match=message):
        Explicit(layers=layers).check(NUM_LAYERS, n)


@pytest.mark.parametrize(("pruner", "most"), [(Streamline(), 5), (Sleb(), 4), (Tail(), 5), (Taylor(), 0)])
def test_more_layers_than_can_go_are_rejected(pruner, most):
    with pytest.raises(ConfigError, match="num_pruned_layers is" if most else "No layer"):
        pruner.check(NUM_LAYERS, most + 1)
    if most:
        pruner.check(NUM_LAYERS, most)


def test_sleb_records_every_step(workspace):
    steps = Sleb().select(workspace, 2).scores.steps
    assert [set(step.losses) for step in steps] == [
        {"1", "2", "3", "4"}, {str(i) for i in range(1, 5)} - {str(steps[0].removed)},
    ]  # fmt: skip
