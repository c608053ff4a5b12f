"""Fits compared on held-out tokens: the best is kept, whatever was set, and never does harm there."""

import json

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, repaired, view_of

from linearpatch.calibration.comparison import AS_SET, NO_PATCH, ComparedFit, Comparison, compare, repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.patches.diag import Diag
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.none import NoPatch
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate
from linearpatch.patches.scalar import Scalar
from linearpatch.pruners.patch_aware import PatchAware

HARMFUL = [  # settings with which each does harm, or may
    Rotate(),
    Scalar(),
    Diag(estimator="mean_of_ratios"),
    LeastSquares(ridge=1e-9),
    LeastSquares(ridge=1e-9, bias=True, gain=5.0),
    LeastSquares(ridge=1e-9, features="rms_normalised"),
    LeastSquares(ridge=1e-9, form="low_rank", rank=4),
    LeastSquares(ridge=1e-9, form="diagonal_plus_low_rank", rank=4),
    LeastSquares(ridge=0.1, sequential=True),
    MlpLeastSquares(ridge=1e-9),
    Refit(ridge=1e-9, gain=5.0),
    Refit(ridge="auto", gain=5.0),
    MlpRefit(ridge=1e-9),
]
REMOVED = [[1, 2, 3], [1, 4]]


def random_blocks(count, seed, tokens=12):
    return TokenBlocks(torch.randint(3, 300, (count, tokens), generator=torch.Generator().manual_seed(seed)), "random")


def workspace_for(patch=None, blocks=8, **others):
    return Workspace(
        decoder_of(tiny_model()), random_blocks(blocks, 8), held_out=random_blocks(4, 9), patch=patch, **others
    )


def held_out_loss(workspace, removed, fitted):
    ids = workspace.held_out.ids
    view = view_of(workspace.decoder, removed, fitted)
    with torch.no_grad():
        logits = view(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("removed", REMOVED, ids=str)
@pytest.mark.parametrize("patch", HARMFUL, ids=repr)
def test_no_fit_is_worse_than_no_patch_or_than_the_fit_as_set(patch, removed):
    workspace = workspace_for()
    result = repair(workspace, patch, edit_of(removed))
    loss = held_out_loss(workspace, removed, result.edit.operators)
    assert loss <= held_out_loss(workspace, removed, []) * (1 + 1e-6)
    assert loss <= held_out_loss(workspace, removed, repaired(patch, workspace, removed)) * (1 + 1e-6)
    assert result.comparison.loss == pytest.approx(loss, rel=1e-5)
    assert result.comparison.dense_loss == pytest.approx(held_out_loss(workspace, [], []), rel=1e-5)


def predictable_blocks(decoder, count, seed):
    """How the model itself continues, so that it has a low loss on it and a spoiled one a high one."""
    ids = random_blocks(count, seed, tokens=1).ids
    for _ in range(15):
        with torch.no_grad():
            logits = decoder.model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return TokenBlocks(ids, "predictable")


def predictable_workspace(patch=None):
    decoder = decoder_of(tiny_model())
    blocks, held_out = (predictable_blocks(decoder, count, seed) for count, seed in ((64, 8), (8, 9)))
    return Workspace(decoder, blocks, held_out=held_out, patch=patch)


def test_a_simpler_fit_is_kept_where_it_is_better():
    """A gain of 20 throws the stream about; without it, the same sums give a better map."""
    workspace = predictable_workspace()
    patch = LeastSquares(ridge=0.1, bias=True, gain=20.0)
    result = repair(workspace, patch, edit_of([1, 2]))
    expected = repaired(patch.simpler()[result.comparison.kept], workspace, [1, 2])
    assert torch.equal(result.edit.operators[0].module.weight, expected[0].module.weight)
    assert any("as set has a held-out loss" in warning for warning in result.warnings(patch))


def test_operators_do_nothing_where_no_patch_is_best():
    workspace = predictable_workspace()
    patch = LeastSquares(ridge=0.1, bias=True, gain=50.0, sequential=True)  # nothing simpler in the same pass
    result = repair(workspace, patch, edit_of([2]))
    assert result.comparison.kept == NO_PATCH
    values = torch.randn(5, 32)
    assert torch.equal(result.edit.operators[0].module(values), values)
    assert any("patch=lstsq at [2, 3) would do harm" in warning for warning in result.warnings(patch))


def test_another_patch_on_the_same_workspace_gets_a_fit_of_its_own():
    shared, patches = workspace_for(), [Refit(ridge=0.3), LeastSquares(bias=True, ridge=0.3)]
    for patch in patches:
        mine, expected = (repair(workspace, patch, edit_of([1, 2])) for workspace in (shared, workspace_for()))
        assert [one.place for one in mine.edit.operators] == [one.place for one in expected.edit.operators]


@pytest.mark.parametrize("patch", [Refit(compare=False), NoPatch()], ids=repr)
def test_nothing_is_compared_where_that_is_not_wanted(patch):
    workspace = workspace_for()
    result = repair(workspace, patch, edit_of([1, 2]))
    assert result.comparison is None
    assert [one.diagnostics for one in result.edit.operators] == [
        one.diagnostics for one in repaired(patch, workspace, [1, 2])
    ]


@pytest.mark.parametrize(("loss", "warned"), [(3.1 + 1.3, False), (3.1 + 1.5, True), (float("inf"), True)])
def test_a_loss_far_above_the_dense_models_is_a_warning(loss, warned):
    measured = (ComparedFit(AS_SET, loss, 1.0),)
    comparison = Comparison((3, 4), AS_SET, loss, is_bound=False, dense_loss=3.1, candidates=measured)
    assert any("num_pruned_layers" in warning for warning in comparison.warnings(Refit())) == warned


def test_a_record_can_hold_it():
    described = repair(workspace_for(), Refit(gain=5.0), edit_of([1, 2])).comparison.describe()
    assert json.loads(json.dumps(described)) == described
    names = [one["name"] for one in described["candidates"]]
    assert names[0] == AS_SET
    assert names[-1] == NO_PATCH
    assert {one["share"] for one in described["candidates"] if one["name"] in (described["kept"], AS_SET)} == {1.0}


def test_of_several_sets_of_layers_the_best_is_exact_and_the_run_reuses_it(monkeypatch):
    workspace = workspace_for()
    patch = Refit(ridge=1e-6)
    comparisons = compare(workspace, patch, [[1, 2], [2, 3], [3, 4]])
    alone = [compare(workspace_for(), patch, [list(one.removed)])[0] for one in comparisons]
    best = min(alone, key=lambda one: one.loss)
    exact = [one for one in comparisons if not one.is_bound]
    assert min(exact, key=lambda one: one.loss).removed == best.removed
    assert min(exact, key=lambda one: one.loss).loss == pytest.approx(best.loss, rel=1e-6)
    assert all(one.loss <= other.loss * (1 + 1e-6) for one, other in zip(comparisons, alone, strict=True))
    before = workspace.layer_forwards
    assert repair(workspace, patch, edit_of(best.removed)).comparison.kept == best.kept
    assert workspace.layer_forwards == before


def test_a_finalist_is_compared_with_its_draft_and_with_no_patch(caplog):
    patch = Refit(gain=20.0)
    workspace = predictable_workspace(patch)
    with caplog.at_level("INFO"):
        selection = PatchAware(protect_first=1, finalists=3).select(workspace, 2)
    for finalist in selection.scores.finalists:
        names = {one["name"] for one in finalist["candidates"]}
        assert {AS_SET, NO_PATCH, "lstsq, as in a search", "gain=1"} <= names
    assert "would do harm" in caplog.text or "as set has a held-out loss" in caplog.text
