"""EvoPress: mutations, fitness against whole logits, selection, and what it finds against all sets."""

import random
from itertools import combinations

import pytest
import torch

from linearpatch.calibration.fitness import Fitness
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError
from linearpatch.models.edit import Edit
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.evolution import Evolution


def plain(sets):
    return [Edit.of_layers(layers) for layers in sets]


def divergence(decoder, layers, ids):
    """KL(dense ‖ pruned), the mean over all tokens, from whole logits."""
    dense, model = (
        edit.apply(decoder.model)(ids).logits.double().log_softmax(-1) for edit in (Edit(), Edit.of_layers(layers))
    )
    return (dense.exp() * (dense - model)).sum(-1).mean().item()


def loss(decoder, layers, ids):
    logits = Edit.of_layers(layers).apply(decoder.model)(ids).logits.double().log_softmax(-1)
    return -logits[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fitness_is_that_of_whole_logits(decoder, blocks, batch_size):
    """On some parts and on all, whichever model the search stands at."""
    for measure, direct in (("divergence", divergence), ("loss", loss)):
        fitness = Fitness(decoder, blocks.ids, plain, measure=measure, parts=2, batch_size=batch_size)
        sets = [(1,), (1, 3), (2, 4)]
        assert fitness.of(sets, [0, 1]) == pytest.approx([direct(decoder, one, blocks.ids) for one in sets], rel=1e-4)
        fitness.set_base((1, 3))
        more = [(1, 4), (1, 2)]
        expected = [direct(decoder, one, blocks.ids[2:]) for one in more]
        assert fitness.of(more, [1]) == pytest.approx(expected, rel=1e-4)
        before = fitness.layer_forwards
        fitness.of(sets, [0, 1])
        assert fitness.layer_forwards == before  # what is known isn't run again


def test_parts_are_at_most_as_many_as_blocks(decoder, blocks):
    assert Fitness(decoder, blocks.ids, plain, measure="loss", parts=16).num_parts == 4


def test_a_mutation_switches_layers(decoder):
    pruner, draws = Evolution(most_swaps=2, initial=1), random.Random(0)
    counts = {1: 0, 2: 0}
    for _ in range(300):
        child = pruner.mutated((1, 4), range(1, 6), draws)
        assert len(set(child)) == 2
        assert set(child) <= set(range(1, 6))
        counts[len(set(child) - {1, 4})] += 1
    assert counts[1] > 2 * counts[2] > 0  # the lower of two draws: one swap in three of four


def test_it_finds_the_best_set_of_all(decoder, blocks):
    workspace = Workspace(decoder, blocks, batch_size=2)
    values = {layers: divergence(decoder, layers, blocks.ids) for layers in combinations(range(6), 2)}
    edit = Evolution(generations=12, offspring=6, initial=2, shares=[0.5, 1.0]).select(workspace, 2)
    best = min(values, key=values.get)
    assert edit.removed_layers == best
    assert edit.scores.fitness[-1] == pytest.approx(values[best], rel=1e-4)
    assert edit.scores.fitness == sorted(edit.scores.fitness, reverse=True)  # the parent only gives way to a fitter set
    assert len(edit.scores.fitness) == 13


def test_no_generation_begins_past_the_limit_of_layer_forwards(decoder, blocks):
    settings = {"offspring": 2, "initial": 2, "shares": [0.5, 1.0]}
    generations = [
        len(
            Evolution(generations=6, max_layer_forwards=limit, **settings)
            .select(Workspace(decoder, blocks), 2)
            .scores.fitness
        )
        for limit in (1, 10**9, None)
    ]
    assert generations == [1, 7, 7]


def test_protected_layers_stay_and_seeds_repeat(decoder, blocks):
    workspace = Workspace(decoder, blocks)
    pruner = Evolution(protect_first=2, protect_last=1, generations=3, offspring=2, initial=2, start=["shortgpt"])
    first, second = (pruner.select(Workspace(decoder, blocks), 2) for _ in range(2))
    assert set(first.removed_layers) <= {2, 3, 4}
    assert first.removed_layers == second.removed_layers
    assert first.scores == second.scores
    assert pruner.select(workspace, 3).removed_layers == (2, 3, 4)  # nothing is left to swap


def test_the_batch_size_changes_nothing(decoder, blocks):
    pruner = Evolution(generations=4, offspring=4, initial=2)
    edits = [pruner.select(Workspace(decoder, blocks, batch_size=size), 3) for size in (1, 4)]
    assert edits[0].removed_layers == edits[1].removed_layers


def test_with_the_patch_in_the_loop_sets_are_judged_when_repaired(decoder, blocks):
    held_out = TokenBlocks(torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(5)), "held out")
    patch = LeastSquares(ridge=0.1)
    workspace = Workspace(decoder, blocks, held_out=held_out, patch=patch)
    pruner = Evolution(generations=10, offspring=6, initial=2, patched=True, measure="loss", shares=[1.0, 1.0])
    assert pruner.needs_held_out
    assert pruner.sees_patches
    edit = pruner.select(workspace, 2)
    values = {}
    for layers in combinations(range(6), 2):
        repaired = patch.draft().repair(Workspace(decoder, blocks), Edit.of_layers(layers))
        logits = repaired.apply(decoder.model)(held_out.ids).logits.double().log_softmax(-1)
        values[layers] = -logits[:, :-1].gather(-1, held_out.ids[:, 1:, None]).mean().item()
    assert edit.removed_layers == min(values, key=values.get)
    assert edit.scores.fitness[-1] == pytest.approx(min(values.values()), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"survivors": [2]}, "equally long"),
        ({"survivors": [1, 2]}, "falling numbers"),
        ({"shares": [0.0, 1.0]}, "above 0"),
        ({"initial": 0}, "must give a set"),
        ({"start": ["sleeb"]}, "Did you mean 'sleb'"),
        ({"measure": "ppl"}, "Allowed: divergence, loss"),
        ({"generations": -1}, "at least 0"),
        ({"max_layer_forwards": 0}, "at least 1"),
    ],
)
def test_settings_are_checked(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        Evolution(**settings)
