"""What a limit may be: a share of the dense model's, or an amount with a unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from linearpatch.errors import ConfigError

AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)

COUNTS = {"K": 1e3, "M": 1e6, "B": 1e9}
BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def amount(what: str, value: Any, units: Mapping[str, float], *, bare: bool = True) -> tuple[float, bool]:
    """A limit as a number, and whether that is a share of the dense model's.

    >>> amount("budget.at_most", 0.8, BYTES), amount("budget.at_most", "2GB", BYTES)
    ((0.8, True), (2000000000.0, False))

    Args:
        what: Name of the setting.
        value: A number up to 1, which is a share; a larger one; or a text of a number and a unit.
        units: What a unit stands for.
        bare: Whether a number above 1 needs no unit.

    Raises:
        ConfigError: it is something else.
    """
    number, unit = value, ""
    if isinstance(value, str) and (match := AMOUNT.fullmatch(value)):
        number, unit = float(match[1]), match[2]
    known = {name.lower(): factor for name, factor in units.items()}
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and isfinite(number) and number > 0
    is_share = is_number and not unit and number <= 1
    if is_share:
        return float(number), True
    if is_number and (unit.lower() in known if unit else bare):
        return float(number) * (known[unit.lower()] if unit else 1.0), False
    example = f"500{list(units)[1]}"
    numbers = f", a number above 1, or one with a unit ({', '.join(units)})" if bare else f", or {', '.join(units)}"
    raise ConfigError(
        f"{what} is {value!r}. Allowed: a share of the dense model's, above 0 and up to 1{numbers}, such as {example}."
    )
