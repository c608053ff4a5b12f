"""Least squares for what is added to a stream: x ↦ x + f(x) W + b, rows of sums of products being [x, f(x), 1]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from linearpatch.patches.least_squares import Solution, centred, solve
from linearpatch.patches.patch import Patch
from linearpatch.registry import components


def sums_of_additions(gram: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums of products of rows [f(x), 1] and y − x."""
    size = gram["xy"].shape[1]
    xx, xy = gram["xx"], gram["xy"]
    return {"xx": xx[size:, size:], "xy": xy[size:] - xx[size:, :size], "bias": gram["bias"]}


def solve_addition(gram: Mapping[str, Tensor], penalty: Tensor) -> Solution:
    """The minimiser of Σ w ‖x + f(x) W + b − y‖² + ‖Λ½ W‖², as a map of rows [x, f(x)]: the identity over W, and b.

    Args:
        gram: Sums of products.
        penalty: The diagonal of Λ.

    Raises:
        NumericsError: there is no unique one.
    """
    added = sums_of_additions(gram)
    solution = solve(added, penalty, torch.zeros_like(added["xy"][:-1]))
    return Solution(torch.cat([_identity(gram), solution.matrix]), solution.bias)


def enlarged_addition(
    gram: Mapping[str, Tensor], penalty: Tensor, gain: float | str, check: Mapping[str, Tensor] | None = None
) -> Solution:
    """The same for targets whose differences from their mean are enlarged: ȳ + g (y − ȳ) in place of y.

    What a least-squares map can't foresee it leaves out, so that its outputs vary less from token to token than the
    stream that they stand for.

    Args:
        gram: Sums of products.
        penalty: The diagonal of Λ; nothing is enlarged where it is infinite.
        gain: g, or `matched`: the g with which outputs vary as much as rows y do.
        check: Sums of products of held-out tokens, on which that is measured where there are any.

    Raises:
        NumericsError: there is no unique solution.
    """
    if penalty.isinf().any():
        return solve_addition(gram, penalty)
    size = gram["xy"].shape[1]
    added = sums_of_additions(gram)
    toward, own = (
        solve({**added, "xy": targets}, penalty, torch.zeros_like(targets[:-1])).matrix
        for targets in (gram["xy"][size:], gram["xx"][size:, :size])
    )
    # The regression of ȳ + g (y − ȳ) − x is g times that of y, less that of x, and a constant.
    start, grown = torch.cat([_identity(gram), -own]), torch.cat([torch.zeros_like(_identity(gram)), toward])
    factor = matching_factor(start, grown, check or gram) if gain == "matched" else float(gain)
    matrix = start + factor * grown
    _, _, mean_x, mean_y = centred(gram)
    assert mean_x is not None
    assert mean_y is not None
    return Solution(matrix, mean_y - mean_x @ matrix, factor)


def matching_factor(start: Tensor, grown: Tensor, gram: Mapping[str, Tensor]) -> float:
    """The g with which rows x times A + g B vary as much from token to token as rows y do; 1 where none does.

    Args:
        start: A.
        grown: B.
        gram: Sums of products.
    """
    xx, _, _, mean_y = centred(gram)
    assert mean_y is not None
    target = gram["yy"] - gram["xx"][-1, -1] * mean_y.square().sum()
    missing = target - (start * (xx @ start)).sum()
    linear, square = (start * (xx @ grown)).sum(), (grown * (xx @ grown)).sum()
    root = linear.square() + square * missing
    return float((root.sqrt() - linear) / square) if root >= 0 and square > 0 else 1.0


def _identity(gram: Mapping[str, Tensor]) -> Tensor:
    return torch.eye(gram["xy"].shape[1]).to(gram["xy"])


def normed_map_alone(epsilon: float | None) -> Patch:
    """A map of the normalised stream that stands in for fits around one: each token by its share of its norm.

    Args:
        epsilon: Added to the mean square of the stream; None: what the model's norms add.
    """
    settings = {"features": "rms_normalised", "epsilon": epsilon}
    alone: Patch = components("patch")["lstsq"](bias=True, ridge=1e-4, weighting="relative", **settings)
    return alone
