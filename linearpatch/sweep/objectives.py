"""What a search looks for: metrics of records by name, each to be low or high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from linearpatch.errors import ConfigError, suggest
from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.results.stages import STAGES

DIRECTIONS = ("minimize", "maximize")
OF_RECORDS = ("parameters", "layers")  # what isn't a metric: of the last stage, and layers removed


@dataclass(frozen=True)
class Objective:
    """A number of a record, and where it should go.

    Attributes:
        direction: `minimize` or `maximize`.
        name: Of a metric of the run's last stage, or its beginning (`ppl`); or `parameters`, or `layers` (removed).
    """

    direction: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Objective:
        """An objective as people write it, such as `minimize ppl/wikitext2`.

        Raises:
            ConfigError: it has another form.
        """
        direction, _, name = str(text).strip().partition(" ")
        if direction not in DIRECTIONS or not name.strip():
            raise ConfigError(
                f"hydra.sweeper.objectives holds {text!r}. Allowed: minimize or maximize and a name, such as "
                f"'minimize ppl/wikitext2', 'maximize qa/paper', 'minimize parameters'."
            )
        return cls(direction, name.strip())

    def value(self, record: Record) -> float:
        """What a completed run has.

        Raises:
            ConfigError: it wasn't measured, or isn't finite.
        """
        stage = next((stage for stage in reversed(STAGES) if record.metrics.get(stage)), "pruned")
        if self.name == "parameters":
            return float(record.num_parameters(stage))
        if self.name == "layers":
            return float(record.size)
        metrics = record.metrics.get(stage, {})
        metric = _named(self.name, metrics)
        if metric is None:
            raise ConfigError(
                f"the objective {self.name} wasn't measured. {suggest(self.name, [*metrics, *OF_RECORDS])} Choose one, "
                "or add an evaluation (eval=[…])."
            )
        if metric.value is None or not isfinite(metric.value):
            raise ConfigError(f"the objective {self.name} isn't finite: {metric.reason or metric.value}.")
        return metric.value


def _named(name: str, metrics: Mapping[str, Metric]) -> Metric | None:
    if name in metrics:
        return metrics[name]
    return next((metric for known, metric in metrics.items() if known.startswith(f"{name}/")), None)


def objectives_of(texts: Sequence[str]) -> list[Objective]:
    """The objectives of a search.

    Raises:
        ConfigError: there are none, or one has another form.
    """
    if not texts:
        raise ConfigError("hydra.sweeper.objectives is empty. Give at least one, such as 'minimize ppl'.")
    return [Objective.parse(text) for text in texts]
