"""How differences in a metric are computed and shown: perplexities in %, shares in points, divergences in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike

from linearpatch.report.statistics import Floats
from linearpatch.results.metric import Metric


@dataclass(frozen=True)
class Scale:
    """What a difference is of.

    Attributes:
        unit: As tables show it.
        lower_is_better: Which of two values is the better one.
        logarithm: Whether differences are of logarithms, so that they are shares of the second value.
        factor: From differences to what is shown.
    """

    unit: str
    lower_is_better: bool
    logarithm: bool = False
    factor: float = 1.0

    def applied(self, values: ArrayLike) -> Floats:
        """The values of which differences are taken."""
        return numpy.log(values) if self.logarithm else numpy.asarray(values, dtype=float)

    def shown(self, value: float | None) -> float | None:
        """A difference as tables show it; None where it is beyond all numbers."""
        if value is None:
            return None
        if not self.logarithm:
            return self.factor * value
        return self.factor * math.expm1(value) if value < 200 else None

    def turned(self, value: float | None) -> float | None:
        """A shown difference with its sides exchanged."""
        if value is None:
            return None
        return -self.factor * value / (self.factor + value) if self.logarithm else -value


PERCENT = Scale("%", lower_is_better=True, logarithm=True, factor=100)
POINTS = Scale("points", lower_is_better=False, factor=100)
NATS = Scale("nats", lower_is_better=True)


def scale_of(name: str, metric: Metric) -> Scale | None:
    """That of a metric; None where it isn't compared."""
    if not metric.headline:
        return None
    if name.startswith("ppl/"):
        return PERCENT
    if name.rpartition("/")[2] == "kl":
        return NATS
    return POINTS if metric.unit == "share" else None
