"""How strongly a least-squares fit is held back, and the choice of that by its error on tokens it wasn't fitted to.

From Gram matrices of held-out tokens the error of any map there follows in closed form, so that many penalties are
tried at the price of solving for each: no model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf, isclose

from linearpatch.errors import NumericsError

STEP = 10**0.5  # between penalties that are tried
SMALLEST, LARGEST = 1e-6, 1e4  # as good as none, and as no fit


@dataclass(frozen=True)
class Penalty:
    """Fractions of the energy of what a map reads; infinite: the map stays at what it is pulled toward.

    Attributes:
        ridge: For all that is fitted, or for all but `stream`.
        stream: For the map of the stream, where something else is fitted beside it; None: nothing is.
    """

    ridge: float
    stream: float | None = None

    @property
    def neighbours(self) -> Iterator[Penalty]:
        """A step up and down for each number, and for both together."""
        for factor in (STEP, 1 / STEP):
            yield replace(self, ridge=_within(self.ridge * factor))
            if self.stream is not None:
                yield replace(self, stream=_within(self.stream * factor))
                yield Penalty(_within(self.ridge * factor), _within(self.stream * factor))


def best_penalty(start: Penalty, error_of: Callable[[Penalty], float]) -> tuple[Penalty, float]:
    """The penalty with the lowest error and that error, found by steps downhill on a logarithmic scale.

    The error has one minimum along each number as a rule: too little follows the noise of the tokens, too much leaves
    out what they say.

    Args:
        start: Where to begin.
        error_of: The error on held-out tokens; a NumericsError counts as infinite.
    """
    errors: dict[Penalty, float] = {}

    def error(penalty: Penalty) -> float:
        known = next((value for tried, value in errors.items() if _same(tried, penalty)), None)
        if known is None:
            try:
                known = error_of(penalty)
            except NumericsError:
                known = inf
            errors[penalty] = known
        return known

    best = start
    while True:
        candidate = min(best.neighbours, key=error)
        if not error(candidate) < error(best):
            return best, error(best)
        best = candidate


def _within(value: float) -> float:
    return min(max(value, SMALLEST), LARGEST)


def _same(penalty: Penalty, other: Penalty) -> bool:
    """Equal up to rounding: steps up and down lead back to where they began."""
    return isclose(penalty.ridge, other.ridge, rel_tol=1e-6) and isclose(
        penalty.stream or 0, other.stream or 0, rel_tol=1e-6
    )
