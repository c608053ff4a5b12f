"""Patches where sublayers were removed, against their formulas on collected streams."""

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from torch.nn import functional

from linearpatch.calibration.canonical import CanonicalBound
from linearpatch.calibration.comparison import repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit, Site
from linearpatch.models.passes import projection_inputs, record, walk
from linearpatch.models.places import OnStream
from linearpatch.models.runner import Runner
from linearpatch.models.units import Interface, Unit, unit_from
from linearpatch.patches.average_update import AverageUpdate
from linearpatch.patches.block import Block
from linearpatch.patches.diag import Diag
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate
from linearpatch.patches.scalar import Scalar

ON_STREAM = [
    Scalar(), Diag(), Rotate(), Scalar(estimator="mean_of_ratios"), AverageUpdate(),
    LeastSquares(ridge=0.01, bias=True), LeastSquares(ridge=0.01, form="low_rank", rank=4),
    LeastSquares(ridge=0.01, features="rms_normalised", bias=True, bound=True),
    LeastSquares(ridge=0.01, features="rms_normalised", bias=True, form="low_rank", rank=4),
]  # fmt: skip


def nbl(**settings):
    """The settings of `patch=nbl`."""
    return LeastSquares(**{"bias": True, "features": "rms_normalised", "bound": True, **settings})


REMOVED = {
    "attention": ("1.attention", "4.attention"),
    "mlp": ("2.mlp", "5.mlp"),
    "sublayer": ("2.mlp", "3.attention", "5.attention"),
}


def tokens_of(count, seed):
    return TokenBlocks(torch.randint(3, 300, (count, 12), generator=torch.Generator().manual_seed(seed)), "random")


def workspace_of(family="llama", patch=None):
    decoder = decoder_of(tiny_model(family))
    return Workspace(decoder, tokens_of(30, 8), held_out=tokens_of(6, 9), batch_size=4, patch=patch)


def streams_of(workspace):
    """By place: what each sublayer reads, `[tokens, hidden]` in fp64."""
    seen = {}
    layers = range(NUM_LAYERS)
    walk(
        workspace.decoder,
        workspace.blocks.ids,
        lambda at, hidden, _: seen.update({at: hidden.flatten(0, 1).double()}),
        between=layers,
    )
    return seen


def fitted(patch, workspace, names):
    return patch.repair(workspace, Edit.without(map(unit_from, names)))


@pytest.mark.parametrize("unit", REMOVED)
@pytest.mark.parametrize("patch", ON_STREAM, ids=lambda patch: f"{type(patch).__name__}")
def test_operators_map_the_stream_before_to_that_past_the_interface(patch, unit):
    workspace = workspace_of()
    streams = streams_of(workspace)
    edit = fitted(patch, workspace, REMOVED[unit])
    assert [placed.site.interface for placed in edit.operators] == edit.interfaces
    for placed in edit.operators:
        before, after = streams[placed.site.interface.start], streams[placed.site.interface.end]
        mapped = placed.module(before.float()).double()
        assert (mapped - after).norm() < (before - after).norm() * 1.0001 or isinstance(patch, (Scalar, Diag, Rotate))
    check_runner(workspace, edit)


def check_runner(workspace, edit):
    decoder, ids = workspace.decoder, workspace.held_out.ids
    recording = record(decoder, ids)
    runner = Runner(decoder, edit)
    stream = runner.run(recording.streams[runner.entry], recording.calls)
    viewed = decoder_of(edit.view(decoder))
    expected = record(viewed, ids).streams[viewed.num_layers]
    assert torch.allclose(stream, expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("names", [("2.attention",), ("2.mlp",), ("2", "3.attention"), ("2", "3")])
def test_average_update_adds_the_mean_of_what_was_removed(names):
    workspace = workspace_of()
    streams = streams_of(workspace)
    (placed,) = fitted(AverageUpdate(), workspace, names).operators
    cut = placed.site.interface
    expected = (streams[cut.end] - streams[cut.start]).mean(0)
    assert torch.allclose(placed.module.bias.double(), expected, atol=1e-5)


def test_scales_are_ratios_of_magnitudes_between_sublayers():
    workspace = workspace_of()
    streams = streams_of(workspace)
    (placed,) = fitted(Diag(), workspace, ["3.mlp"]).operators
    expected = streams[4].abs().mean(0) / streams[3.5].abs().mean(0)
    assert torch.allclose(placed.module.scale.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["3.attention", "3.mlp"])
def test_nbl_is_the_least_squares_map_of_the_normed_stream(name):
    workspace = workspace_of()
    streams = streams_of(workspace)
    (placed,) = fitted(nbl(ridge=0), workspace, [name]).operators
    cut = placed.site.interface
    x, y = streams[cut.start], streams[cut.end] - streams[cut.start]
    x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
    predicted = placed.module(streams[cut.start].float()).double()
    assert torch.allclose(predicted - streams[cut.start], x @ solution, atol=1e-3 * y.abs().max())
    diagnostics = placed.diagnostics
    assert diagnostics["bound"] >= workspace.statistic(CanonicalBound(cut.start, cut.end))["error"].item() > 0
    plain = fitted(nbl(ridge=0, bound=False), workspace, [name]).operators[0]
    assert plain.diagnostics == {key: value for key, value in diagnostics.items() if key != "bound"}


def test_the_bound_holds_and_names_what_is_linear():
    workspace = workspace_of()
    streams = streams_of(workspace)
    result = workspace.statistic(CanonicalBound(2, 2.5))
    x = streams[2] * (streams[2].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    x, y = x - x.mean(0), streams[2.5] - streams[2.5].mean(0)
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
    error = (y - x @ solution).square().sum() / y.square().sum()
    assert result["error"].item() == pytest.approx(error.item(), abs=1e-6)
    assert result["bound"] >= result["error"]


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize("patch", [Refit(ridge=0.1, gain=1), MlpRefit(ridge=0.1)], ids=["refit", "mlp_refit"])
def test_refit_changes_the_nearest_projection_that_is_left(patch, family):
    workspace = workspace_of(family)
    edit = fitted(patch, workspace, ("2.mlp",))
    in_weight = edit.operators[0]
    assert (in_weight.place.layer, in_weight.place.part) == (2, "attention")
    with projection_inputs(workspace.decoder, [Unit(2, "attention")]) as read:
        record(workspace.decoder, workspace.blocks.ids)
    assert read[Unit(2, "attention")].shape[-1] == 32
    streams = streams_of(workspace)
    hidden = read[Unit(2, "attention")].flatten(0, 1).double()
    mapped = streams[2.5] + hidden @ in_weight.module.weight.T.double()
    for placed in edit.operators[1:]:
        mapped = placed.module(mapped.float()).double()
    assert (mapped - streams[3]).norm() < (streams[2.5] - streams[3]).norm()
    check_runner(workspace, edit)
    (first, *_) = fitted(patch, workspace, ("3.attention",)).operators
    assert (first.place.layer, first.place.part) == (2, "mlp")


@pytest.mark.parametrize("patch", [Refit(), MlpRefit(), MlpLeastSquares()])
def test_patches_before_an_interface_need_something_there(patch):
    with pytest.raises(ConfigError, match=r"layer 0 is removed, or its attention. Keep it"):
        patch.place([Interface(0, 0.5)])


def test_mlp_lstsq_needs_an_mlp():
    with pytest.raises(ConfigError, match=r"before \[2.5, 3\) stands the attention of layer 2. Use patch=lstsq"):
        MlpLeastSquares().place([Interface(2.5, 3)])
    assert MlpLeastSquares().place([Interface(2, 2.5)])


@pytest.mark.parametrize("unit", REMOVED)
@pytest.mark.slow
def test_sequential_fits_see_the_stream_as_it_arrives(unit):
    workspace = workspace_of()
    patch = LeastSquares(ridge=0.01, bias=True, sequential=True)
    edit = fitted(patch, workspace, REMOVED[unit])
    check_runner(workspace, edit)
    last = edit.operators[-1]
    before = Edit(edit.removed, edit.operators[:-1])
    cut = last.site.interface
    view = decoder_of(before.view(workspace.decoder))
    at = last.site.reader - len([layer for layer in edit.removed_layers if layer < last.site.reader])
    arrived = record(view, workspace.blocks.ids).streams[at].flatten(0, 1).double()
    target = streams_of(workspace)[cut.end]
    mapped = functional.linear(arrived, last.module.weight.double(), last.module.bias.double())
    gradient = (arrived - arrived.mean(0)).T @ (mapped - target)
    held_back = 0.01 * arrived.square().sum() / 32 * (last.module.weight.T.double() - torch.eye(32))
    centre = len(arrived) * arrived.mean(0)[:, None] * (mapped - target).mean(0)
    assert torch.allclose(gradient + centre, -held_back, atol=1e-2 * (arrived.T @ target).abs().max())


@pytest.mark.parametrize("unit", REMOVED)
def test_no_patch_is_kept_where_it_is_better_on_held_out_text(unit):
    patch = nbl(ridge=1e-6)
    workspace = workspace_of(patch=patch)
    repaired = repair(workspace, patch, Edit.without(map(unit_from, REMOVED[unit])))
    losses = {fit.name: fit.loss for fit in repaired.comparison.candidates if fit.share == 1}
    assert repaired.comparison.loss == min(losses.values())
    assert set(repaired.comparison.removed) == set(REMOVED[unit])
    assert repaired.edit.removed == tuple(map(unit_from, REMOVED[unit]))


def test_block_repairs_whole_layers():
    with pytest.raises(ConfigError, match=r"\[2, 2.5\) begins or ends between the sublayers of a layer"):
        Block().place([Interface(2, 2.5)])


def test_patches_that_know_only_layers_are_rejected():
    with pytest.raises(ConfigError, match=r"at \[2, 2.5\): it was written for whole layers"):
        Site(Interface(2, 2.5), 2.5, OnStream(2.5))
