"""What may move of a patch, and what comes back as an operator."""

import pytest
import torch

from linearpatch.distillation.patch_forms import (
    DiagonalPatch,
    FullPatch,
    LowRankPatch,
    OperatorPatch,
    dense_form,
)
from linearpatch.errors import ConfigError
from linearpatch.linalg.hadamard import hadamard_matrix
from linearpatch.models.modeling_linearpatch import ChannelScale, FeatureMap, LinearMap

SIZE = 12
GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(SIZE, SIZE, generator=GENERATOR)
BIAS = torch.randn(SIZE, generator=GENERATOR)
HIDDEN = torch.randn(2, 5, SIZE, generator=GENERATOR)


def patches(bias=BIAS):
    for around_start in (False, True):
        yield FullPatch(MATRIX, bias, around_start=around_start)
        for basis in ("channel", "hadamard"):
            yield DiagonalPatch(MATRIX, bias, basis, around_start=around_start)
    yield LowRankPatch(MATRIX, bias, 3, seed=0)


@pytest.mark.parametrize("patch", [*patches(), *patches(None)], ids=lambda patch: type(patch).__name__)
def test_every_patch_begins_as_the_fitted_one_and_ends_as_what_it_became(patch):
    expected = HIDDEN @ MATRIX + (0 if patch.bias() is None else BIAS)
    assert torch.allclose(patch(HIDDEN), expected, atol=1e-5)
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=GENERATOR))
    moved = patch(HIDDEN)
    assert not torch.allclose(moved, expected, atol=1e-2)
    assert torch.allclose(patch.operator()(HIDDEN), moved, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in patch.operator().parameters())


@pytest.mark.parametrize("around_start", [False, True])
@pytest.mark.parametrize(
    "fitted",
    [
        FeatureMap([MATRIX], True, bias=BIAS),
        FeatureMap([MATRIX[:, :3], MATRIX[:3]], False, scale=BIAS),
    ],
    ids=["normalised", "thin"],
)
def test_a_feature_map_is_trained_as_a_whole(fitted, around_start):
    patch = OperatorPatch(fitted, around_start=around_start)
    expected = fitted(HIDDEN)
    assert torch.allclose(patch(HIDDEN), expected, atol=1e-5)
    parameters = list(patch.parameters())
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in fitted.parameters())
    patch(HIDDEN).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=GENERATOR))
    moved = patch(HIDDEN)
    assert torch.allclose(patch.operator()(HIDDEN), moved, atol=1e-5)
    assert torch.equal(fitted(HIDDEN), expected)
    assert not any(parameter.requires_grad for parameter in patch.operator().parameters())
    assert patch(HIDDEN.bfloat16()).dtype == torch.bfloat16


def test_the_diagonal_of_the_papers_patch_is_its_d():
    h, d = hadamard_matrix(SIZE).float(), torch.rand(SIZE, generator=GENERATOR) + 0.5
    patch = DiagonalPatch(h * d @ h.T, None, "hadamard", around_start=False)
    factor = torch.rand(SIZE, generator=GENERATOR)
    with torch.no_grad():
        patch.scale.copy_(factor)
    assert torch.allclose(patch.matrix(), h * (d * factor) @ h.T, atol=1e-5)
    assert sum(parameter.numel() for parameter in list(patch.parameters())) == SIZE


def test_a_scale_for_each_channel_stays_one():
    start, _ = dense_form(ChannelScale(torch.full((1,), 1.4)), SIZE)
    patch = DiagonalPatch(start, None, "channel", around_start=True)
    with torch.no_grad():
        patch.scale[0] += 1
    operator = patch.operator()
    assert isinstance(operator, ChannelScale)
    assert torch.allclose(operator.scale, torch.tensor([2.8] + [1.4] * (SIZE - 1)))


@pytest.mark.parametrize(
    ("make", "toward_start"),
    [
        (lambda: FullPatch(MATRIX, BIAS, around_start=True), True),
        (lambda: FullPatch(MATRIX, BIAS, around_start=False), False),
        (lambda: DiagonalPatch(MATRIX, None, "channel", around_start=True), True),
        (lambda: DiagonalPatch(MATRIX, None, "channel", around_start=False), False),
        (lambda: LowRankPatch(MATRIX, BIAS, 2, seed=0), True),
    ],
)
def test_weight_decay_pulls_to_zero_or_to_the_start(make, toward_start):
    """Without a gradient decay alone acts."""
    patch = make()
    optimizer = torch.optim.AdamW(patch.parameters(), lr=1e-2, weight_decay=1.0)
    for parameter in patch.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = MATRIX if toward_start else 0.99 * MATRIX
    assert torch.allclose(patch.matrix(), expected, atol=1e-6)


def test_low_rank_adds_what_its_rank_allows():
    patch = LowRankPatch(MATRIX, None, 2, seed=0)
    with torch.no_grad():
        patch.down.normal_(generator=GENERATOR)
    assert torch.linalg.matrix_rank(patch.matrix() - MATRIX, tol=1e-4) == 2
    assert sum(parameter.numel() for parameter in list(patch.parameters())) == 4 * SIZE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_master_copy_takes_updates_that_half_precision_would_lose(dtype):
    patch = FullPatch(MATRIX, None, around_start=False)
    assert patch(HIDDEN.to(dtype)).dtype == dtype
    patch(HIDDEN.to(dtype)).float().square().mean().backward()
    (parameter,) = patch.parameters()
    assert parameter.dtype == parameter.grad.dtype == torch.float32
    before = parameter.detach().clone()
    torch.optim.SGD([parameter], lr=1e-6).step()
    assert not torch.equal(parameter, before)
    assert torch.equal(parameter.to(dtype), before.to(dtype))


def test_dense_form_of_what_is_known():
    matrix, bias = dense_form(LinearMap(MATRIX, BIAS), SIZE)
    assert torch.equal(matrix, MATRIX)
    assert torch.equal(bias, BIAS)
    with pytest.raises(ConfigError, match="A Tanh isn't one matrix"):
        dense_form(torch.nn.Tanh(), SIZE)
