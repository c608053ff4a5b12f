"""What a search varies: values, ranges and intervals of settings, as Hydra's overrides say them, for Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from linearpatch.errors import ConfigError
from linearpatch.overrides import override

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FORMS = "pruner=sleb,shortgpt, 'num_pruned_layers=range(3,8)', 'patch.ridge=tag(log, interval(1e-5, 1e-1))'"


@dataclass(frozen=True)
class Space:
    """Overrides that are the same in every trial, and distributions of the others.

    Attributes:
        fixed: Overrides.
        varied: By key.
    """

    fixed: tuple[str, ...]
    varied: Mapping[str, BaseDistribution]

    @classmethod
    def of(cls, parsed: Sequence[Any]) -> Space:
        """That of parsed overrides; of a key that is there twice the last counts.

        Raises:
            ConfigError: nothing varies, or something can't in a search.
        """
        by_key: dict[str, Any] = {}
        for word in parsed:
            by_key.pop(word.get_key_element(), None)
            by_key[word.get_key_element()] = word
        varied = {key: _distribution(word) for key, word in by_key.items() if word.is_sweep_override()}
        if not varied:
            raise ConfigError(
                f"hydra/sweeper=optuna has nothing to search. Give some settings several values: {FORMS}."
            )
        fixed = tuple(word.input_line for word in by_key.values() if not word.is_sweep_override())
        return cls(fixed, varied)

    def overrides(self, chosen: Mapping[str, Any]) -> list[str]:
        """A trial's configuration."""
        words = []
        for key, value in chosen.items():
            is_written = isinstance(value, str)  # a choice, as its override has it
            words.append(f"{key}={value}" if is_written else override(key, value))
        return [*self.fixed, *words]

    def describe(self) -> dict[str, str]:
        """Plain values that differ where another space is searched."""
        return {**{key: repr(values) for key, values in self.varied.items()}, "fixed": " ".join(sorted(self.fixed))}


def _distribution(word: Any) -> BaseDistribution:
    """The distribution of an override with several values."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = word.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start, value.end, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
        if isinstance(value, RangeSweep) and all(isinstance(at, int) for at in (value.start, value.stop, value.step)):
            start, stop, step = int(value.start or 0), int(value.stop or 0), int(value.step)
            return IntDistribution(start, start + (stop - 1 - start) // step * step, step=step)
    except ValueError as error:
        raise ConfigError(f"{word.input_line} can't be searched: {error} Write it as in {FORMS}.") from error
    return CategoricalDistribution(list(word.sweep_string_iterator()))
