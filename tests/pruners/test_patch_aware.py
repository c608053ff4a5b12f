"""Searches over patched models, against doing it by hand."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from conftest import NUM_LAYERS
from edits import repaired
from searches import PATCHES, chosen, patched_view, workspace_for

from linearpatch.calibration import sums_in_memory
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.units import Interface
from linearpatch.patches.least_squares import DRAFT_RIDGE
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.none import NoPatch
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate
from linearpatch.pruners.patch_aware import PatchAware
from linearpatch.pruners.shortgpt import ShortGPT
from linearpatch.storage.cache import Cache


def held_out_loss(workspace, patch, removed):
    ids = workspace.held_out.ids
    with torch.no_grad():
        logits = patched_view(workspace, patch, removed)(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("patch", PATCHES, ids=repr)
def test_window_takes_the_window_that_is_best_when_patched(patch, stop_early):
    workspace = workspace_for(patch)
    losses = [held_out_loss(workspace, patch, range(start, start + 2)) for start in range(NUM_LAYERS - 1)]
    selection = PatchAware(stop_early=stop_early).select(workspace, 2)
    best = losses.index(min(losses))
    assert selection.removed_layers == (best, best + 1)
    for start, (found, loss) in enumerate(zip(selection.scores.values, losses, strict=True)):
        if start in selection.scores.bounds:
            assert losses[best] < found <= loss + 1e-6
        else:
            assert found == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("patch", PATCHES, ids=repr)
def test_a_race_takes_the_same_window_where_it_is_clear(patch):
    exact = PatchAware().select(workspace_for(patch), 2)
    workspace = workspace_for(patch)
    raced = PatchAware(noise=4.0).select(workspace, 2)
    assert raced.removed_layers == exact.removed_layers
    assert min(raced.scores.values) == pytest.approx(min(exact.scores.values), rel=1e-5)
    standings = {tuple(one["removed"]): one for one in raced.scores.race}
    assert standings[raced.removed_layers]["stderr"] == 0
    assert len(standings) == NUM_LAYERS - 1


def test_finalists_of_a_race_are_its_best_also_those_that_dropped_out():
    patch = LeastSquares(ridge=0.1)
    edit = PatchAware(noise=0.0, finalists=3).select(workspace_for(patch), 2)
    standings = {tuple(one["removed"]): one for one in edit.scores.race}
    assert sum(one["is_contender"] for one in standings.values()) == 1
    ranked = sorted(standings, key=lambda layers: (not standings[layers]["is_contender"], standings[layers]["loss"]))
    assert [tuple(one["removed"]) for one in edit.scores.finalists] == ranked[:3]
    alone = PatchAware(noise=0.0).select(workspace_for(patch), 2)
    assert alone.scores.finalists is None
    assert alone.removed_layers == PatchAware().select(workspace_for(patch), 2).removed_layers
    only_one = PatchAware(noise=0.0, finalists=3, protect_first=1).select(workspace_for(patch), NUM_LAYERS - 1)
    assert only_one.scores.finalists is None  # who is alone needs no final
    everyone = PatchAware(noise=1e9, finalists=NUM_LAYERS).select(workspace_for(patch), 2)
    assert len(everyone.scores.finalists) == NUM_LAYERS - 1


def test_candidates_of_all_sizes_are_fitted_from_one_pass(monkeypatch):
    patch, sizes = LeastSquares(ridge=0.1), (1, 2, 3)
    pruner = PatchAware(noise=3.0, rivals=["shortgpt"])
    alone = [pruner.select(workspace_for(patch), n) for n in sizes]
    passes = []
    run_pass = Workspace._run_pass

    def counted(workspace, statistics, description):
        passes.append(workspace.blocks.hash)
        run_pass(workspace, statistics, description)

    monkeypatch.setattr(Workspace, "_run_pass", counted)
    workspace = workspace_for(patch)
    workspace.is_shared = True
    pruner.prepare(workspace, sizes)
    assert sorted(passes) == sorted([workspace.blocks.hash, workspace.held_out.hash])
    together = [pruner.select(workspace, n) for n in sizes]
    assert len(passes) == 2
    assert [edit.scores.race for edit in together] == [edit.scores.race for edit in alone]
    assert [edit.removed_layers for edit in together] == [edit.removed_layers for edit in alone]


@pytest.mark.parametrize("noise", [None, 0.0])
def test_the_choices_of_rivals_are_finalists_however_bad_their_drafts_are(noise):
    patch = LeastSquares(ridge=0.1)
    workspace = workspace_for(patch)
    rival = tuple(sorted(ShortGPT().select(workspace.on_held_out(), 2).removed_layers))
    alone = PatchAware(noise=noise).select(workspace, 2).removed_layers
    assert rival != alone
    edit = PatchAware(noise=noise, rivals=["shortgpt"], finalists=2).select(workspace, 2)
    finalists = {tuple(one["removed"]): one["loss"] for one in edit.scores.finalists}
    assert set(finalists) == {alone, rival}
    assert edit.removed_layers == min(finalists, key=finalists.__getitem__)


@pytest.mark.parametrize("noise", [None, 3.0])
def test_rivals_are_candidates_wherever_their_layers_are(noise):
    workspace = workspace_for(NoPatch())
    rival = tuple(sorted(ShortGPT(protect_first=1).select(workspace.on_held_out(), 2).removed_layers))
    assert rival[1] - rival[0] > 1  # no window of the search
    losses = {pair: held_out_loss(workspace, NoPatch(), pair) for pair in (rival, (1, 2), (2, 3), (3, 4), (4, 5))}
    pruner = PatchAware(protect_first=1, rivals=["shortgpt", "streamline"], noise=noise)
    taken = pruner.select(workspace, 2)
    assert taken.removed_layers == min(losses, key=lambda layers: losses[layers])
    assert len(taken.scores.values) == NUM_LAYERS - 1


@pytest.mark.parametrize("offload", [False, True])
def test_held_out_tokens_are_run_once_for_rivals_and_the_race(offload):
    workspace = workspace_for(NoPatch())
    workspace.offload_streams = offload
    PatchAware(rivals=["shortgpt", "streamline"], noise=1e9).select(workspace, 2)
    after = sum(NUM_LAYERS - 2 - start for start in range(NUM_LAYERS - 1))
    assert workspace.layer_forwards <= 6 * (NUM_LAYERS + after + NUM_LAYERS - 2)  # and ShortGPT's layers
    assert workspace.layer_forwards > 6 * after
    assert {search._offload for search in workspace._searches.values()} == {offload}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rivals": ["shortgtp"]}, "Did you mean 'shortgpt'"),
        ({"noise": -1.0}, "pruner.noise is -1.0"),
    ],
)
def test_a_race_that_cannot_be_is_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        PatchAware(**settings)


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("patch", PATCHES, ids=repr)
def test_greedy_removes_and_patches_layer_by_layer(patch, stop_early):
    workspace = workspace_for(patch)
    removed = []
    for _ in range(4):
        losses = {
            layer: held_out_loss(workspace, patch, sorted([*removed, layer]))
            for layer in range(1, NUM_LAYERS)
            if layer not in removed
        }
        removed.append(min(losses, key=lambda layer: losses[layer]))
    pruner = PatchAware(search="greedy", stop_early=stop_early, protect_first=1)
    selection = pruner.select(workspace, 4)
    assert list(selection.removed_layers) == removed
    assert pruner.select(workspace, 2).removed_layers == selection.removed_layers[:2]
    last = selection.scores.steps[-1]
    assert last.losses[str(removed[-1])] == pytest.approx(losses[removed[-1]], rel=1e-5)


@pytest.mark.parametrize("stop_early", [False, True])
def test_a_beam_that_is_wide_enough_finds_the_best_set_of_all(stop_early):
    patch = LeastSquares(ridge=0.1)
    workspace = workspace_for(patch)
    losses = {layers: held_out_loss(workspace, patch, layers) for layers in combinations(range(NUM_LAYERS), 3)}
    pruner = PatchAware(search="beam", width=100, stop_early=stop_early)
    assert pruner.select(workspace, 3).removed_layers == min(losses, key=lambda layers: losses[layers])


@pytest.mark.parametrize("patch", PATCHES[1:3], ids=repr)
def test_a_narrow_beam_keeps_the_best_of_grown_sets_and_windows(patch):
    workspace = workspace_for(patch)
    width, kept = 2, [()]
    for size in (1, 2, 3):
        grown = {tuple(sorted((*base, layer))) for base in kept for layer in range(NUM_LAYERS) if layer not in base}
        windows = {tuple(range(start, start + size)) for start in range(NUM_LAYERS - size + 1)}
        losses = {layers: held_out_loss(workspace, patch, layers) for layers in grown | windows}
        kept = sorted(losses, key=lambda layers: losses[layers])[:width]
    selection = PatchAware(search="beam", width=width).select(workspace, 3)
    assert selection.removed_layers == kept[0]
    assert selection.scores.steps[-1].sets == [list(layers) for layers in kept]


def test_a_patch_on_an_mlp_is_searched_too():
    patch = MlpLeastSquares(ridge=0.1)
    workspace = workspace_for(patch)
    losses = [held_out_loss(workspace, patch, range(start, start + 2)) for start in range(1, NUM_LAYERS - 1)]
    best = 1 + losses.index(min(losses))
    assert PatchAware(protect_first=1).select(workspace, 2).removed_layers == (best, best + 1)


def test_a_candidate_runs_only_what_comes_after_its_cut():
    n, batches = 2, 6
    workspace = workspace_for(LeastSquares(ridge=0.1))
    PatchAware(stop_early=False).select(workspace, n)
    after = sum(NUM_LAYERS - n - start for start in range(NUM_LAYERS - n + 1))
    assert workspace.layer_forwards == batches * (NUM_LAYERS + after)


def test_a_search_is_kept_for_the_next_run(tmp_path):
    patch = LeastSquares(ridge=0.1)
    first = PatchAware(search="greedy").select(workspace_for(patch, cache=Cache(tmp_path)), 3)
    again = workspace_for(patch, cache=Cache(tmp_path))
    assert chosen(PatchAware(search="greedy").select(again, 3)) == chosen(first)
    assert again.layer_forwards == 0
    assert not list(tmp_path.rglob("statistic/*"))  # Gram matrices of every candidate would fill a disk
    other = workspace_for(replace(patch, ridge=0.2), cache=Cache(tmp_path))
    PatchAware(search="greedy").select(other, 3)
    assert other.layer_forwards > 0


def test_large_models_are_fitted_in_parts(monkeypatch):
    patch = LeastSquares(ridge=0.1)
    workspace = workspace_for(patch)
    whole = PatchAware().select(workspace, 2)
    (statistic,) = patch.draft().interface_statistics(patch.place([Interface(0, 2)]))
    monkeypatch.setattr(sums_in_memory, "MOST_BYTES", 3 * statistic.sum_bytes(workspace.decoder))
    fitted = []
    fit = LeastSquares.fit

    def counted(patch, workspace, sites):
        fitted.append(len(sites))
        return fit(patch, workspace, sites)

    monkeypatch.setattr(LeastSquares, "fit", counted)
    assert chosen(PatchAware().select(workspace_for(patch), 2)) == chosen(whole)
    assert fitted == [3] * ((NUM_LAYERS - 1) // 3) + [(NUM_LAYERS - 1) % 3] * bool((NUM_LAYERS - 1) % 3)


@pytest.mark.parametrize(
    ("search", "patch"),
    [
        ("window", Refit(compare=False)),
        ("greedy", Refit(ridge="auto", compare=False)),
        ("beam", Refit(compare=False)),
        ("window", LeastSquares(ridge="auto", compare=False)),
        ("greedy", LeastSquares(ridge=0.1, sequential=True, compare=False)),
        ("beam", LeastSquares(ridge="auto", compare=False)),
    ],
    ids=repr,
)
def test_finalists_are_measured_as_the_run_would_repair_them(search, patch):
    workspace = workspace_for(patch)
    pruner = PatchAware(search=search, finalists=4, protect_first=1)
    selection = pruner.chooser.select(workspace, 2)
    finalists = selection.scores.finalists
    found = {tuple(one["removed"]): one["loss"] for one in finalists if not one["is_bound"]}
    losses = {tuple(one["removed"]): held_out_loss(workspace, patch, one["removed"]) for one in finalists}
    assert len(losses) == 4
    assert found == pytest.approx({removed: losses[removed] for removed in found}, rel=1e-5)
    assert tuple(sorted(selection.removed_layers)) == min(losses, key=lambda removed: losses[removed])
    drafts = {
        removed: held_out_loss(workspace, patch.draft(), removed) for removed in combinations(range(1, NUM_LAYERS), 2)
    }
    if search == "window":
        windows = [removed for removed in drafts if removed[1] == removed[0] + 1]
        assert set(losses) == set(sorted(windows, key=lambda removed: drafts[removed])[:4])


def test_a_search_may_look_at_a_part_of_the_tokens():
    patch = LeastSquares(ridge=0.1)
    whole = workspace_for(patch)
    part = Workspace(
        whole.decoder,
        replace(whole.blocks, ids=whole.blocks.ids[:3]),
        held_out=replace(whole.held_out, ids=whole.held_out.ids[:2]),
        patch=patch,
    )
    pruner = PatchAware(search="greedy")
    assert chosen(replace(pruner, draft_share=0.25).select(whole, 3)) == chosen(pruner.select(part, 3))
    with pytest.raises(ConfigError, match="draft_share"):
        PatchAware(draft_share=1.5)


def test_the_final_leaves_what_the_run_will_need(tmp_path, monkeypatch):
    workspace = workspace_for(Refit(), cache=Cache(tmp_path))
    removed = PatchAware(finalists=3, protect_first=1).chooser.select(workspace, 2).removed_layers
    monkeypatch.setattr(Workspace, "_run_pass", None)
    assert repaired(Refit(), workspace, removed)


def test_a_search_draws_on_drafts():
    patch = LeastSquares(ridge="auto", sequential=True, bias=True, gain="matched")
    assert patch.draft() == LeastSquares(ridge=DRAFT_RIDGE, bias=True)  # nothing in it reads held-out tokens
    workspace = workspace_for(patch.draft())
    assert len(PatchAware(search="greedy").select(workspace, 2).removed_layers) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PatchAware(search="all"), "pruner.search"),
        (lambda: PatchAware(width=0), "pruner.width"),
        (lambda: PatchAware(draft_share=0), "more than 0"),
    ],
)
def test_impossible_searches_are_rejected(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)


def test_a_search_needs_tokens_that_are_held_out(decoder, blocks):
    with pytest.raises(ConfigError, match="held_out_blocks"):
        PatchAware().select(Workspace(decoder, blocks, patch=Rotate()), 2)
