"""Least squares: features, thin forms, the choice of the ridge, fits behind earlier patches."""

from dataclasses import replace
from math import inf, log10

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from edits import on_stream, repaired, view_of

from linearpatch.calibration.gram import Gram, PairGram
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError, NumericsError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.passes import mlp_outputs, record
from linearpatch.patches.diag import Diag
from linearpatch.patches.least_squares import relative_error
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.penalty import Penalty, best_penalty
from linearpatch.patches.refit import Refit
from linearpatch.patches.rotate import Rotate

SITE = on_stream(1, 4, 4)


def random_blocks(count, seed, tokens=12):
    return TokenBlocks(torch.randint(3, 300, (count, tokens), generator=torch.Generator().manual_seed(seed)), "random")


@pytest.fixture
def fitting(decoder):
    return Workspace(decoder, random_blocks(24, 8), held_out=random_blocks(4, 9), batch_size=4)


@pytest.fixture
def pair(decoder, fitting):
    """Streams before and after the interface, `[tokens, hidden]` in fp64."""
    streams = record(decoder, fitting.blocks.ids).streams
    return streams[SITE.interface.start].reshape(-1, 32).double(), streams[SITE.interface.end].reshape(-1, 32).double()


def fit(patch, workspace):
    return patch.fit(workspace, [SITE])[0]


def applied(fitted, values):
    return fitted.module(values.float()).double()


def normalised(values):
    return values / (values.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_rms_normalised_features_explain_what_the_gap_adds(fitting, pair, bias, relative):
    before, after = pair
    design = normalised(before)
    if bias:
        design = torch.cat([design, torch.ones(len(design), 1).double()], dim=1)
    weight = 1 / after.norm(dim=1, keepdim=True) if relative else torch.ones(len(after), 1).double()
    solution = torch.linalg.lstsq(design * weight, (after - before) * weight).solution
    patch = LeastSquares(ridge=0.0, features="rms_normalised", bias=bias, weighting="relative" if relative else "none")
    fitted = fit(patch, fitting)
    assert torch.allclose(applied(fitted, before), before + design @ solution, rtol=1e-3, atol=1e-3)
    left = (before + design @ solution - after) * weight
    assert fitted.diagnostics["error_after"] == pytest.approx(
        (left.square().sum() / (after * weight).square().sum()).item(), rel=1e-3
    )


@pytest.mark.parametrize("features", ["hidden", "rms_normalised"])
def test_ridge_pulls_the_map_of_features_toward_doing_nothing(fitting, pair, features):
    before, _ = pair
    fitted = fit(LeastSquares(ridge=1e9, features=features, bias=False), fitting)
    assert torch.allclose(applied(fitted, before), before, atol=1e-4)


@pytest.mark.parametrize("features", ["hidden", "rms_normalised"])
@pytest.mark.parametrize("rank", [1, 5, 32])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_low_rank_is_the_best_of_that_rank(fitting, pair, features, rank, ridge):
    """Against the projection on leading singular vectors of the fitted values, ridge rows included."""
    before, after = pair
    design = before if features == "hidden" else normalised(before)
    penalty = ridge * design.square().sum(dim=0).mean()
    rows = torch.cat([design, penalty.sqrt() * torch.eye(32).double()])
    target = torch.cat([after - before, torch.zeros(32, 32).double()])
    full = torch.linalg.lstsq(rows, target).solution
    right = torch.linalg.svd(rows @ full, full_matrices=False).Vh[:rank]
    fitted = fit(LeastSquares(ridge=ridge, form="low_rank", rank=rank, features=features), fitting)
    assert torch.allclose(applied(fitted, before), before + design @ full @ right.T @ right, rtol=1e-3, atol=1e-3)
    assert [tuple(weight.shape) for weight in fitted.module.weights] == [(rank, 32), (32, rank)]


def test_a_diagonal_helps_a_low_rank_map_and_neither_can_be_moved_to_do_better(fitting, pair):
    before, after = pair
    patch = LeastSquares(ridge=0.0, form="diagonal_plus_low_rank", rank=4, bias=True)
    fitted = fit(patch, fitting)
    scale = fitted.module.scale.double().requires_grad_()
    first, second = (weight.double().T.requires_grad_() for weight in fitted.module.weights)
    offset = fitted.module.bias.double().requires_grad_()
    loss = (before * scale + before @ first @ second + offset - after).square().sum() / after.square().sum()
    gradients = torch.autograd.grad(loss, [scale, second, offset])
    thin = fit(LeastSquares(ridge=0.0, form="low_rank", rank=4, bias=True), fitting)
    diagonal = after.mean(0) * 0 + (before * after).sum(0) / before.square().sum(0)
    alone = (before * diagonal - after).square().sum() / after.square().sum()
    assert loss.item() == pytest.approx(fitted.diagnostics["error_after"], rel=1e-4)
    assert loss < min(thin.diagnostics["error_after"], alone)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-2 * loss


@pytest.mark.parametrize("patch", [LeastSquares(), LeastSquares(bias=True), MlpLeastSquares(), MlpRefit()], ids=repr)
@pytest.mark.parametrize("removed", [[1, 2, 3], pytest.param([1, 4], marks=pytest.mark.slow)])
def test_auto_takes_the_ridge_with_the_lowest_error_on_held_out_tokens(fitting, decoder, patch, removed):
    """Against the streams of models that are patched with each ridge."""
    patch = replace(patch, weighting="none")
    fitted = repaired(replace(patch, ridge="auto"), fitting, removed)
    for placed in fitted:
        errors = {
            ridge: error_behind(decoder, fitting.held_out, placed.site, replace(patch, ridge=ridge), fitting)
            for ridge in (1e-6, *(10 ** (step / 2) for step in range(-10, 5)))
        }
        assert placed.diagnostics["error_held_out"] <= 1.001 * min(errors.values())
        if (ridge := placed.diagnostics["ridge"]) < inf:
            chosen = error_behind(decoder, fitting.held_out, placed.site, replace(patch, ridge=ridge), fitting)
            assert placed.diagnostics["error_held_out"] == pytest.approx(chosen, rel=1e-3)


def error_behind(decoder, tokens, site, patch, workspace):
    """Of a patch at one interface: the squared error of the stream past it, over that stream's energy."""
    removed = range(site.interface.start, site.interface.end)
    view = decoder_of(view_of(decoder, removed, repaired(patch, workspace, removed)))
    found = record(view, tokens.ids).streams[site.interface.start].double()
    wanted = record(decoder, tokens.ids).streams[site.interface.end].double()
    return ((found - wanted).square().sum() / wanted.square().sum()).item()


def test_auto_leaves_a_stream_alone_that_nothing_changes():
    """What the tokens that it is fitted on say is noise, and on others it does harm."""
    gram = gram_of(noise=1.0, tokens=40, seed=1)
    patch = LeastSquares(ridge="auto", bias=True)
    penalty = patch._best_penalty(gram, gram_of(noise=0.0, tokens=400, seed=2))
    (operator,), _ = patch.operators(gram, penalty)
    values = torch.randn(5, 32)
    assert penalty.ridge == inf
    assert torch.allclose(operator(values), values)


def gram_of(noise, tokens, seed):
    """Of a stream that an interface leaves as it is, but for noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 32, generator=generator).double()
    y = x + noise * torch.randn(tokens, 32, generator=generator).double()
    sums = PairGram.start(Gram(0, 1, bias=True), 6)
    sums.add(torch.cat([x, torch.ones(tokens, 1).double()], dim=1), y, y.square().sum(dim=1, keepdim=True), None)
    sums.count = tokens
    return sums.result()


@pytest.mark.parametrize("tokens", [20, 40, 80, 400])
def test_auto_is_never_worse_than_nothing_however_few_the_tokens(tokens):
    """From half as many tokens as there are unknowns on; a plain fit isn't."""
    check = gram_of(noise=0.5, tokens=2000, seed=2)
    fitted = gram_of(noise=0.5, tokens=tokens, seed=1)
    patch = LeastSquares(ridge="auto", bias=True)
    error = relative_error(patch.operators(fitted, patch._best_penalty(fitted, check))[1], check)
    plain = relative_error(patch.operators(fitted, Penalty(1e-6))[1], check)
    nothing = relative_error(patch.operators(fitted, Penalty(inf))[1], check)
    assert error <= min(plain, nothing)
    assert tokens > 80 or plain > nothing


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
def test_a_penalty_is_found_from_either_side(start):
    def error(penalty):
        if penalty.ridge < 1e-5:
            raise NumericsError("singular")
        return (log10(penalty.ridge) + 1.1) ** 2 + (log10(penalty.stream) - log10(penalty.ridge) + 1.6) ** 2

    best, lowest = best_penalty(Penalty(start, start), error)
    assert lowest == error(best)
    assert log10(best.ridge) == pytest.approx(-1, abs=0.01)
    assert log10(best.stream) == pytest.approx(-2.5, abs=0.01)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    "patch", [LeastSquares(bias=True, ridge=0.1), LeastSquares(bias=True, ridge=0.0), Refit(ridge=0.1)], ids=repr
)
def test_a_matched_gain_gives_outputs_the_mean_and_the_variance_of_the_stream_past_the_gap(decoder, patch, relative):
    workspace = Workspace(decoder, random_blocks(24, 8), batch_size=4)
    patch = replace(patch, weighting="relative" if relative else "none")

    def outputs(gain):
        removed = range(SITE.interface.start, SITE.interface.end)
        fitted = repaired(replace(patch, gain=gain), workspace, removed)
        view = decoder_of(view_of(decoder, removed, fitted))
        found = record(view, workspace.blocks.ids).streams[SITE.interface.start]
        return found.reshape(-1, 32).double(), fitted[-1].diagnostics

    after = record(decoder, workspace.blocks.ids).streams[SITE.interface.end].reshape(-1, 32).double()
    weight = 1 / after.square().sum(dim=1, keepdim=True) if relative else torch.ones(len(after), 1).double()

    def moments(rows):
        mean = (rows * weight).sum(dim=0) / weight.sum()
        return mean, ((rows - mean).square() * weight).sum().item()

    (plain, _), (matched, diagnostics), (doubled, _) = outputs(1), outputs("matched"), outputs(2.0)
    mean, variance = moments(after)
    assert torch.allclose(moments(matched)[0], mean, atol=1e-4)
    assert moments(matched)[1] == pytest.approx(variance, rel=1e-3)
    assert diagnostics["gain"] == pytest.approx((variance / moments(plain)[1]) ** 0.5, rel=1e-3)
    assert torch.allclose(doubled, mean + 2 * (plain - mean), atol=1e-3)


@pytest.mark.parametrize(
    "patch", [LeastSquares(ridge=1e-3), LeastSquares(features="rms_normalised"), Rotate(), Diag()], ids=repr
)
def test_a_sequential_fit_sees_what_earlier_patches_leave(fitting, decoder, patch):
    from dataclasses import replace

    removed = [1, 3, 4]
    first, second = repaired(replace(patch, sequential=True), fitting, removed)
    plain_first, plain_second = repaired(patch, fitting, removed)
    assert same(first, plain_first)
    assert not same(second, plain_second)
    # By hand: the streams of the dense model, but for the one that the second patch reads.
    view = decoder_of(view_of(decoder, [1], [first]))
    ids = fitting.blocks.ids
    reads, wanted = record(view, ids).streams[3 - 1], record(decoder, ids).streams[5]
    by_hand = patch.fit(Pretended(decoder, fitting.blocks, {3: reads, 5: wanted}), [second.site])[0]
    values = torch.randn(7, 32)
    assert torch.allclose(second.module(values), by_hand.module(values), rtol=1e-3, atol=1e-4)


class Pretended(Workspace):
    """A workspace whose statistics see some streams that they are given."""

    def __init__(self, decoder, blocks, streams):
        super().__init__(decoder, blocks, batch_size=len(blocks.ids))
        self._given = streams

    def _replaced(self, batch, mlp_layers, products):
        from linearpatch.calibration.statistics import LayerInput

        return {index: LayerInput(index, stream) for index, stream in self._given.items()}


def same(one, other):
    values = torch.randn(9, 32, generator=torch.Generator().manual_seed(4))
    return torch.allclose(one.module(values), other.module(values), rtol=1e-5, atol=1e-6)


def test_a_sequential_map_of_an_mlp_reads_the_mlp_of_the_patched_model(fitting, decoder):
    removed = [1, 4]
    first, second = repaired(MlpLeastSquares(sequential=True, ridge=0.0), fitting, removed)
    view = decoder_of(view_of(decoder, [1], [first]))
    ids = fitting.blocks.ids
    with mlp_outputs(view, [2]) as added:  # dense layer 3
        before = record(view, ids).streams[3].reshape(-1, 32).double()
        mlp = added[2].reshape(-1, 32).double()
    after = record(decoder, ids).streams[5].reshape(-1, 32).double()
    expected = torch.linalg.lstsq(mlp, after - before + mlp).solution
    assert torch.allclose(second.module(mlp.float()).double(), mlp @ expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_patches_of_a_sequential_repair_fit_other_families(family):
    decoder = decoder_of(tiny_model(family))
    workspace = Workspace(decoder, random_blocks(8, 8), held_out=random_blocks(2, 9), batch_size=4)
    patch = LeastSquares(ridge="auto", sequential=True, weighting="relative", bias=True)
    fitted = repaired(patch, workspace, [NUM_LAYERS - 1, 1])
    assert [one.site.interface.start for one in fitted] == [1, NUM_LAYERS - 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ridge": "best"}, "patch.ridge is 'best'. Allowed: auto, or a finite number"),
        ({"ridge": -1}, "patch.ridge"),
        ({"ridge": None}, "patch.ridge is None. Allowed: auto, or a finite number"),
        ({"ridge": True}, "patch.ridge is True. Allowed: auto, or a finite number"),
        ({"features": "raw"}, "patch.features"),
        ({"form": "thin"}, "patch.form"),
        ({"rank": 0}, "patch.rank"),
        ({"form": "diagonal_plus_low_rank", "features": "rms_normalised"}, "patch.form=low_rank"),
        ({"gain": "auto", "bias": True}, "patch.gain is 'auto'. Allowed: matched"),
        ({"gain": None, "bias": True}, "patch.gain is None. Allowed: matched"),
        ({"gain": float("inf"), "bias": True}, "patch.gain is inf. Allowed: matched, or a finite number"),
        ({"gain": "matched"}, "patch.bias=true"),
        ({"gain": 1.1, "bias": True, "form": "low_rank"}, "patch.form=full"),
    ],
)
def test_impossible_least_squares_are_rejected(settings, words):
    with pytest.raises(ConfigError) as error:
        LeastSquares(**settings)
    assert words in str(error.value)


def test_a_product_thicker_than_the_map_is_rejected(decoder):
    with pytest.raises(ConfigError, match=r"patch\.rank is 33, and the stream has 32 channels"):
        LeastSquares(form="low_rank", rank=33).check(decoder)
    LeastSquares(form="low_rank", rank=32).check(decoder)
    LeastSquares(rank=33).check(decoder)


def test_a_choice_needs_tokens_that_are_held_out(decoder, blocks):
    with pytest.raises(ConfigError, match="held_out_blocks"):
        repaired(LeastSquares(ridge="auto"), Workspace(decoder, blocks), [2])
