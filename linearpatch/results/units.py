"""The units of metrics, and how people read numbers in them: one table for the terminal, tables, figures and page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How numbers of a unit are shown.

    Attributes:
        factor: To multiply them with …
        digits: … digits after the point …
        suffix: … and what follows where no head names it.
    """

    factor: float = 1
    digits: int = 2
    suffix: str = ""


# Shares are points, as papers have them. What isn't here, a perplexity or a ratio, has no unit.
UNITS = {
    "share": Unit(100),
    "bytes": Unit(2**-20, 0, " MiB"),
    "bytes/token": Unit(2**-10, 1, " KiB/token"),
    "s": Unit(1000, 1, " ms"),
    "1/s": Unit(1, 1),
    "FLOP": Unit(1e-9, 1, " GFLOP"),
    "count": Unit(1e-6, 1, " M"),
}


def unit_of(unit: str, value: float = 1.0) -> Unit:
    """How a number is shown; of small ones without a unit with more digits."""
    return UNITS.get(unit) or (Unit() if abs(value) >= 0.1 or value == 0 else Unit(digits=4))


def number_text(value: float, unit: str, spread: float | None = None, *, suffix: bool = False) -> str:
    """A number with its spread, in the unit that people read.

    >>> number_text(0.4625, "share"), number_text(13.221, "", 0.05), number_text(0.012, "s", suffix=True)
    ('46.25', '13.22 ± 0.05', '12.0 ms')
    """
    shown = unit_of(unit, value)
    end = shown.suffix if suffix else ""
    more = "" if spread is None else f" ± {spread * shown.factor:,.{shown.digits}f}"
    return f"{value * shown.factor:,.{shown.digits}f}{end}{more}"
