"""How many layers to remove: at the knee of a recipe's curve, and within a bound of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from linearpatch.frontiers.losses import Measure, Point, interval_of, steepness


@dataclass(frozen=True)
class Recommendation:
    """A size, and how sure it is.

    Attributes:
        reason: `knee`, or `within` a bound.
        n: Layers to remove; 0: none.
        loss: What that loses; 0.0 of none.
        interval: Its 95 % interval; None where single windows or questions aren't known.
        sizes: The 95 % interval of `n` itself, over windows or questions.
        certain: Of `within`: the most layers whose whole interval is within the bound.
    """

    reason: str
    n: int
    loss: float
    interval: tuple[float, float] | None = None
    sizes: tuple[int, int] | None = None
    certain: int | None = None


def knee(points: Sequence[Point], measure: Measure) -> Recommendation | None:
    """The size past which a layer costs more than it did on average; None of fewer than three sizes.

    Of the curve from the dense model to the largest size, it is the point farthest below the straight line between
    both (Satopää et al. 2011, with the ends as they are). Perplexities count by their logarithms. It depends on how far
    the curve goes: the sizes that were measured.
    """
    if len(points) < 3:
        return None
    sizes = [0, *(point.n for point in points)]
    at = _knee(sizes, [0.0, *(steepness(point.loss, measure) for point in points)])
    spread = None
    if all(point.draws is not None for point in points):
        curves = numpy.stack([point.draws for point in points if point.draws is not None])
        sizes_drawn = numpy.array(
            [sizes[_knee(sizes, [0.0, *(steepness(loss, measure) for loss in curve)])] for curve in curves.T]
        )
        spread = _sizes(sizes_drawn)
    return _recommended("knee", points, sizes[at], spread)


def within(points: Sequence[Point], bound: float) -> Recommendation:
    """The most layers within a bound, if every smaller size is within it, too.

    Args:
        points: Sizes, ascending.
        bound: The largest loss.
    """
    n = _most([point.loss for point in points], points, bound)
    spread = None
    certain = None
    if all(point.draws is not None for point in points):
        curves = numpy.stack([point.draws for point in points if point.draws is not None])
        spread = _sizes(numpy.array([_most(curve, points, bound) for curve in curves.T]))
        certain = _most([point.interval[1] if point.interval else point.loss for point in points], points, bound)
    return _recommended("within", points, n, spread, certain)


def _knee(sizes: Sequence[int], losses: Sequence[float]) -> int:
    """Index of the size farthest below the line between the first and the last."""
    first, last = losses[0], losses[-1]
    below = [
        first + (last - first) * (size - sizes[0]) / (sizes[-1] - sizes[0]) - loss
        for size, loss in zip(sizes, losses, strict=True)
    ]
    return max(range(1, len(sizes)), key=lambda at: (below[at], -at))


def _most(losses: Sequence[float], points: Sequence[Point], bound: float) -> int:
    most = 0
    for loss, point in zip(losses, points, strict=True):
        if loss > bound:
            break
        most = point.n
    return most


def _sizes(sizes_drawn: numpy.ndarray) -> tuple[int, int]:
    low, high = interval_of(sizes_drawn.astype(float)) or (0.0, 0.0)
    return int(numpy.floor(low)), int(numpy.ceil(high))


def _recommended(
    reason: str, points: Sequence[Point], n: int, sizes: tuple[int, int] | None, certain: int | None = None
) -> Recommendation:
    point = next((point for point in points if point.n == n), None)
    if point is None:
        return Recommendation(reason, 0, 0.0, None, sizes, certain)
    return Recommendation(reason, n, point.loss, point.interval, sizes, certain)
