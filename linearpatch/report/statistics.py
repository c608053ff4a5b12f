"""Paired differences with intervals, and p-values corrected for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95

Floats = NDArray[numpy.float64]
Strata = Sequence[tuple[float, Floats]]  # weights, and the differences of each stratum


@dataclass(frozen=True)
class Moments:
    """A mean difference, and how well it is known.

    Attributes:
        mean: The weighted mean over strata.
        stderr: Its standard error; None where a stratum has a single value.
        degrees: Degrees of freedom, by Welch and Satterthwaite where there are several strata.
    """

    mean: float
    stderr: float | None
    degrees: float


def moments(strata: Strata) -> Moments:
    """Mean difference and its standard error, of independent strata such as the tasks of an average."""
    mean = variance = spent = 0.0
    known = True
    for weight, values in strata:
        count = len(values)
        centre = float(values.sum()) / count
        mean += weight * centre
        if count < 2:
            known = False
            continue
        rest = values - centre
        part = weight**2 * float(rest.dot(rest)) / (count - 1) / count
        variance += part
        spent += part**2 / (count - 1)
    if not known:
        return Moments(mean, None, 0)
    # Rounding of equal differences is no spread.
    scale = max(float(numpy.abs(values).max()) for _, values in strata)
    if math.sqrt(variance) <= 1e-12 * scale:
        return Moments(mean, 0.0, 0)
    return Moments(mean, math.sqrt(variance), variance**2 / spent)


def t_tests(moments: Sequence[Moments]) -> list[tuple[float, float, float] | None]:
    """Ends of the 95 % interval and the p-value of each mean difference, by Student's t-distribution.

    Of differences that are all zero, `(0, 0, 1)`; None where the spread is unknown or zero.
    """
    if not moments:
        return []
    tested = [moment.stderr is not None and moment.stderr > 0 for moment in moments]
    means = numpy.array([moment.mean for moment in moments])
    errors = numpy.array([moment.stderr if known else 1.0 for moment, known in zip(moments, tested, strict=True)])
    degrees = numpy.array([moment.degrees if known else 1.0 for moment, known in zip(moments, tested, strict=True)])
    arms = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * errors
    p = 2 * stats.t.sf(numpy.abs(means) / errors, degrees)
    return [
        (float(mean - arm), float(mean + arm), float(value)) if known
        else (0.0, 0.0, 1.0) if moment.stderr == 0 and moment.mean == 0
        else None
        for moment, known, mean, arm, value in zip(moments, tested, means, arms, p, strict=True)
    ]  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's method: the chance of any false discovery among them stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda at: p[at])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = largest
    return adjusted
