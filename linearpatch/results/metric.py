"""A measured number, and what is retained of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import with_config

from linearpatch.results.fields import CHECKED, LARGEST, Count, Name, Number, Positive, Words

# The definitions of retained performance (`evaluation.retention`), in words.
DEFINITIONS: Mapping[str, str] = {
    "mean_of_ratios": "mean of ratios",
    "ratio_of_means": "ratio of means",
    "above_chance": "above chance",
}


@with_config(CHECKED)
@dataclass(frozen=True)
class Metric:
    """A number with all that is needed to trust or repeat it.

    Attributes:
        value: The number; None where it isn't finite.
        stderr: Its standard error, where there is one.
        n: What was counted (tokens, questions, repetitions).
        protocol: How it was measured, in words.
        token_hash: Hash of the tokens it was measured on.
        unit: `share`, `s`, `1/s`, `bytes`, `FLOP`, `count`, or nothing.
        counted: What `n` counts.
        headline: Whether short tables show it.
        reason: Why there is no value.
        versus: How it compares with other stages, by stage: `difference`, or `ratio`, with `low` and `high` where the
            interval is known.
        parts: Of an average, the metrics that it is over.
        chance: Of an accuracy over choices, what guessing gives.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("parts", "chance")

    value: Number | None
    stderr: Positive | None
    n: Count
    protocol: Words
    token_hash: Name
    unit: Name = ""
    counted: Name = "tokens"
    headline: bool = False
    reason: Words | None = None
    versus: Mapping[str, dict[str, Number]] = field(default_factory=dict)
    parts: list[Name] | None = None
    chance: Number | None = None

    def __post_init__(self) -> None:
        for base, versus in self.versus.items():
            if not ({"ratio", "low", "high"} <= versus.keys() or "difference" in versus):
                raise ValueError(f"versus.{base} holds neither a difference nor a ratio with its interval")
            if ("low" in versus) != ("high" in versus):
                raise ValueError(f"versus.{base} has half an interval")

    @classmethod
    def of(cls, value: float, stderr: float | None, n: int, protocol: str, token_hash: str, **more: Any) -> Metric:
        """A metric; a value that isn't finite, or is too large to reckon with, becomes None with the reason."""
        if abs(value) <= LARGEST:
            finite = stderr is not None and abs(stderr) <= LARGEST
            return cls(value, stderr if finite else None, n, protocol, token_hash, **more)
        return cls(None, None, n, protocol, token_hash, **more, reason=f"the value is {value}")

    @property
    def has_data(self) -> bool:
        """Whether anything was measured."""
        return self.value is not None or self.n > 0

    @property
    def data(self) -> str:
        """What was counted, and on which tokens.

        >>> Metric(1.0, None, 2000, "p", "0123456789abcdef").data
        '2,000 tokens (01234567)'
        """
        return f"{self.n:,} {self.counted}" + (f" ({self.token_hash[:8]})" if self.token_hash else "")

    def is_comparable(self, other: Metric) -> bool:
        """Whether both were measured in the same way on the same data."""
        return (self.protocol, self.n, self.token_hash) == (other.protocol, other.n, other.token_hash)


@with_config(CHECKED)
@dataclass(frozen=True)
class Retained:
    """Retained performance of an average, as a fraction, with its 95 % interval where that is known."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("low", "high")

    value: Number
    low: Number | None = None
    high: Number | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("there is half an interval")
