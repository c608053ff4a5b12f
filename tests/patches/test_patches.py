"""Each operator against its formula, written out on collected streams."""

import pytest
import torch
from conftest import NUM_LAYERS
from edits import on_mlp, on_stream

from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError, NumericsError
from linearpatch.linalg.hadamard import hadamard_matrix
from linearpatch.models.fingerprint import parameter_hash
from linearpatch.models.passes import mlp_outputs, record
from linearpatch.models.units import Interface
from linearpatch.patches.diag import Diag
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.none import NoPatch
from linearpatch.patches.rotate import Rotate
from linearpatch.patches.scalar import Scalar

SITE = on_stream(1, 4, 4)


@pytest.fixture
def many_blocks():
    return TokenBlocks(torch.randint(3, 300, (16, 12), generator=torch.Generator().manual_seed(8)), "random")


@pytest.fixture
def fitting(decoder, many_blocks):
    return Workspace(decoder, many_blocks, batch_size=4)


@pytest.fixture
def pair(decoder, many_blocks):
    """Streams before and after the interface, `[tokens, hidden]` in fp64."""
    streams = record(decoder, many_blocks.ids).streams
    return streams[SITE.interface.start].reshape(-1, 32).double(), streams[SITE.interface.end].reshape(-1, 32).double()


def fit(patch, workspace):
    return patch.fit(workspace, [SITE])[0]


def applied(fitted, values):
    return fitted.module(values.float()).double()


def test_scalar_is_the_ratio_of_mean_magnitudes(fitting, pair):
    before, after = pair
    alpha = after.abs().mean() / before.abs().mean()
    assert torch.allclose(applied(fit(Scalar(), fitting), before), alpha * before, rtol=1e-5, atol=1e-6)


def test_diag_is_the_ratio_for_each_channel(fitting, pair):
    before, after = pair
    d = after.abs().mean(0) / before.abs().mean(0)
    assert torch.allclose(applied(fit(Diag(), fitting), before), before * d, rtol=1e-5, atol=1e-5)


def test_rotate_is_h_diag_d_ht_with_d_from_the_rotated_streams(fitting, pair):
    before, after = pair
    h = hadamard_matrix(32)
    d = (after @ h).abs().mean(0) / (before @ h).abs().mean(0)
    p = h @ d.diag() @ h.T
    fitted = fit(Rotate(), fitting)
    assert torch.allclose(applied(fitted, before), before @ p, rtol=1e-4, atol=1e-5)
    assert torch.allclose(fitted.module.weight, fitted.module.weight.T, atol=1e-6)
    assert torch.linalg.eigvalsh(fitted.module.weight.double()).min() > 0


@pytest.mark.parametrize("patch", [Scalar, Diag, Rotate])
def test_the_official_estimator_averages_ratios_over_blocks(patch, decoder, many_blocks, fitting):
    h = hadamard_matrix(32) if patch is Rotate else torch.eye(32, dtype=torch.float64)
    ratios = []
    for block in many_blocks.ids:
        streams = record(decoder, block[None]).streams
        before, after = (streams[i][0].double() @ h for i in (SITE.interface.start, SITE.interface.end))
        means = [x.abs().mean() if patch is Scalar else x.abs().mean(0) for x in (after, before)]
        ratios.append(means[0] / means[1])
    d = torch.stack(ratios).mean(0)
    values = torch.randn(5, 32, dtype=torch.float64)
    found = applied(fit(patch(estimator="mean_of_ratios"), fitting), values)
    assert torch.allclose(found, (values @ h * d) @ h.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_lstsq_is_the_least_squares_solution(fitting, pair, bias):
    before, after = pair
    design = torch.cat([before, torch.ones(len(before), 1).double()], 1) if bias else before
    expected = design @ torch.linalg.lstsq(design, after).solution
    fitted = fit(LeastSquares(ridge=0.0, bias=bias), fitting)
    assert torch.allclose(applied(fitted, before), expected, rtol=1e-3, atol=1e-3)
    error = (expected - after).square().sum() / after.square().sum()
    assert fitted.diagnostics["error_after"] == pytest.approx(error.item(), rel=1e-3)
    error_before = (before - after).square().sum() / after.square().sum()
    assert fitted.diagnostics["error_before"] == pytest.approx(error_before.item(), rel=1e-5)


def test_relative_weighting_divides_each_error_by_its_targets_norm(fitting, pair):
    before, after = pair
    scale = 1 / after.norm(dim=1, keepdim=True)
    expected = before @ torch.linalg.lstsq(before * scale, after * scale).solution
    found = applied(fit(LeastSquares(ridge=0.0, weighting="relative"), fitting), before)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_ridge_pulls_toward_the_identity(fitting, pair):
    before, after = pair
    gram, ridge = before.T @ before, 0.3
    penalty = ridge * gram.diagonal().mean() * torch.eye(32).double()
    expected = torch.linalg.solve(gram + penalty, before.T @ after + penalty)
    found = applied(fit(LeastSquares(ridge=ridge), fitting), before)
    assert torch.allclose(found, before @ expected, rtol=1e-3, atol=1e-4)
    identity = fit(LeastSquares(ridge=1e9), fitting).module.weight
    assert torch.allclose(identity, torch.eye(32), atol=1e-5)


@pytest.fixture
def mlp_pair(decoder, many_blocks):
    """What the MLP before the interface adds, and what it would have to add, `[tokens, hidden]` in fp64."""
    streams = record(decoder, many_blocks.ids).streams
    with mlp_outputs(decoder, [SITE.interface.start - 1]) as added:
        record(decoder, many_blocks.ids)
    before, after, mlp = (x.reshape(-1, 32).double() for x in (streams[1], streams[4], added[0]))
    return mlp, after - (before - mlp), after


@pytest.mark.parametrize("weighting", ["none", "relative"])
def test_mlp_lstsq_maps_what_the_mlp_adds_to_what_it_would_have_to_add(fitting, mlp_pair, weighting):
    mlp, target, after = mlp_pair
    scale = 1 / after.norm(dim=1, keepdim=True) if weighting == "relative" else torch.ones(len(after), 1).double()
    expected = torch.linalg.lstsq(mlp * scale, target * scale).solution
    patch = MlpLeastSquares(ridge=0.0, weighting=weighting)
    fitted = patch.fit(fitting, patch.place([Interface(1, 4)]))[0]
    assert fitted.site == on_mlp(1, 4)
    assert torch.allclose(applied(fitted, mlp), mlp @ expected, rtol=1e-3, atol=1e-3)
    energy = (after * scale).square().sum()
    for name, matrix in {"error_before": torch.eye(32).double(), "error_after": expected}.items():
        error = ((mlp @ matrix - target) * scale).square().sum() / energy
        assert fitted.diagnostics[name] == pytest.approx(error.item(), rel=1e-3)


def test_mlp_lstsq_errors_compare_with_those_of_lstsq(fitting):
    patch = MlpLeastSquares(ridge=0.01)
    on_mlp = patch.fit(fitting, patch.place([Interface(1, 4)]))[0].diagnostics
    on_stream = fit(LeastSquares(ridge=0.01), fitting).diagnostics
    assert on_mlp["error_before"] == pytest.approx(on_stream["error_before"], rel=1e-6)


def test_mlp_lstsq_needs_a_layer_before_the_gap():
    with pytest.raises(ConfigError, match="layer 0 is removed"):
        MlpLeastSquares().place([Interface(0, 2)])


def test_too_few_tokens_without_ridge_are_rejected(decoder):
    blocks = TokenBlocks(torch.randint(3, 300, (1, 8)), "random")
    with pytest.raises(NumericsError, match="8 tokens for 32 unknowns"):
        fit(LeastSquares(ridge=0.0), Workspace(decoder, blocks))


def test_too_few_tokens_with_ridge_are_told(decoder):
    few, enough = (
        Workspace(decoder, TokenBlocks(torch.randint(3, 300, (1, length)), "random"), held_out=held_out)
        for length, held_out in ((8, TokenBlocks(torch.randint(3, 300, (1, 8)), "random")), (64, None))
    )
    warning = fit(LeastSquares(ridge=0.1), few).warning
    assert warning.startswith("patch=lstsq: 8 tokens for 32 unknowns")
    assert warning.endswith("or set patch.ridge=auto.")
    assert fit(LeastSquares(ridge="auto"), few).warning.endswith("more calibration text (calibration.num_blocks).")
    assert fit(LeastSquares(ridge=0.1), enough).warning == ""


@pytest.mark.parametrize(("tokens", "told"), [(32, True), (33, False)])
def test_a_fit_that_its_tokens_determine_exactly_is_told_too(decoder, tokens, told):
    text = TokenBlocks(torch.randint(3, 300, (1, tokens)), "random")
    assert bool(fit(LeastSquares(ridge=0.1), Workspace(decoder, text)).warning) == told


def test_one_site_per_interface_or_per_layer():
    interfaces = [Interface(1, 3), Interface(5, 6)]
    assert Diag().place(interfaces) == [on_stream(1, 3, 3), on_stream(5, 6, 6)]
    assert Diag(sites="one_per_layer").place(interfaces) == [on_stream(1, 2, 3), on_stream(2, 3, 3), on_stream(5, 6, 6)]
    assert NoPatch().place(interfaces) == []


def test_scales_of_touching_layers_multiply_to_that_of_their_interface(fitting):
    layers = Diag(sites="one_per_layer")
    values = torch.randn(3, 32, dtype=torch.float64)
    chained = values
    for fitted in layers.fit(fitting, layers.place([Interface(1, 4)])):
        chained = applied(fitted, chained)
    assert torch.allclose(chained, applied(fit(Diag(), fitting), values), rtol=1e-4)


def test_a_channel_that_is_always_zero_is_left_alone():
    from linearpatch.calibration.statistics import ratio

    before, after = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 3.0])
    assert ratio(after, before).tolist() == [1.0, 1.5]


def test_a_patch_at_the_end_reads_what_the_final_norm_read(fitting):
    patch = LeastSquares()
    fitted = patch.fit(fitting, patch.place([Interface(NUM_LAYERS - 1, NUM_LAYERS)]))[0]
    assert fitted.diagnostics["error_after"] < fitted.diagnostics["error_before"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Diag(estimator="median"),
        lambda: Rotate(sites="everywhere"),
        lambda: LeastSquares(weighting="robust"),
        lambda: LeastSquares(ridge=-1.0),
    ],
)
def test_impossible_settings_are_rejected(make):
    with pytest.raises(ConfigError, match="Allowed"):
        make()


def test_parameter_hash_tells_patches_apart(fitting):
    hashes = {parameter_hash([fit(patch, fitting).module]) for patch in (Diag(), Scalar(), Rotate(), LeastSquares())}
    assert len(hashes) == 4
    assert parameter_hash([fit(Diag(), fitting).module]) in hashes
