"""What each size loses against the dense model, with intervals from the same windows or questions of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from math import log as log_of
from pathlib import Path

import numpy
from numpy.typing import NDArray

from linearpatch.errors import ConfigError, suggest
from linearpatch.results.questions import Answers
from linearpatch.results.record import Record
from linearpatch.results.stages import STAGES

DRAWS = 2_000  # of the bootstrap
LEVEL = 0.95

Samples = NDArray[numpy.float64]


@dataclass(frozen=True)
class Measure:
    """What a loss is for a kind of metric.

    Attributes:
        name: Of the metric.
        title: Of the loss, in words.
        is_share: Whether it is a share of the dense model's value, shown in percent.
    """

    name: str
    title: str
    is_share: bool = True

    @classmethod
    def of(cls, metric: str) -> Measure:
        """That of a metric, by its name."""
        if metric.startswith("ppl/"):
            return cls(metric, "more perplexity")
        if metric.endswith("/kl"):
            return cls(metric, "KL divergence from dense", is_share=False)
        return cls(metric, "less accuracy")

    @property
    def samples_name(self) -> str:
        """What the windows' or questions' values are called beside a record."""
        return f"{self.name}/windows" if self.name.startswith("ppl/") or not self.is_share else self.name

    def loss(self, dense: float, value: float) -> float:
        """The loss of a model: a share of the dense model's perplexity or accuracy, or a divergence itself."""
        if self.name.startswith("ppl/"):
            return value / dense - 1
        return value if not self.is_share else 1 - value / dense

    def of_means(self, dense: Samples, model: Samples) -> Samples:
        """Losses from means over windows or questions: of mean log-likelihoods, divergences or answers."""
        if self.name.startswith("ppl/"):
            result: Samples = numpy.exp(model - dense) - 1
            return result
        return model if not self.is_share else 1 - model / dense

    def text(self, loss: float) -> str:
        """A loss as people read it."""
        return f"{100 * loss:.1f} %" if self.is_share else f"{loss:.4f}"


@dataclass(frozen=True, eq=False)
class Point:
    """A size of a recipe.

    Attributes:
        n: Layers removed.
        record: Of its run.
        loss: Against the dense model.
        draws: The same for each draw of the bootstrap, the same windows or questions at every size; None where the
            values of single windows or questions aren't known.
    """

    n: int
    record: Record
    loss: float
    draws: Samples | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval over windows or questions."""
        return interval_of(self.draws)


def interval_of(draws: Samples | None) -> tuple[float, float] | None:
    """The 95 % interval of drawn values; None where there are none."""
    if draws is None or not len(draws):
        return None
    low, high = numpy.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def metrics_of(records: Sequence[Record]) -> list[str]:
    """Metrics of which a frontier can be drawn: perplexities, divergences and accuracies that all sizes have."""
    known: list[str] = []
    for name, metric in (records[0].metrics.get("dense", {}) if records else {}).items():
        is_loss = name.startswith("ppl/") or name.endswith("/kl")
        is_accuracy = metric.unit == "share" and metric.counted == "questions"
        if is_loss or is_accuracy:
            known.append(name)
    if any(last_stage(record) == "dense" for record in records):  # nothing smaller was measured
        return []
    return [name for name in known if all(name in record.metrics.get(last_stage(record), {}) for record in records)]


def chosen_metric(records: Sequence[Record], asked: str | None) -> str:
    """The metric of a frontier: the one asked for, or the first.

    Raises:
        ConfigError: it wasn't measured, or nothing was.
    """
    known = metrics_of(records)
    if not known:
        raise ConfigError(
            "No perplexity, divergence or accuracy was measured of the dense model and of all sizes, so that there is "
            "no frontier. Add one, such as eval=[ppl], and keep dense and patched in stages."
        )
    if asked is not None and asked not in known:
        raise ConfigError(f"--metric is {asked!r}. {suggest(asked, known)}")
    return asked or known[0]


def last_stage(record: Record) -> str:
    """The last stage that was measured: what a recipe gives."""
    return next((stage for stage in reversed(STAGES) if record.metrics.get(stage)), "dense")


def points_of(runs: Mapping[int, tuple[Record, Path]], measure: Measure) -> list[Point]:
    """The sizes of a recipe, ascending; those whose value isn't finite are left out.

    Args:
        runs: Completed records and their folders, by the number of removed layers.
        measure: What is compared.
    """
    points = []
    for n, (record, folder) in sorted(runs.items()):
        stage = last_stage(record)
        dense, value = (record.metrics[which][measure.name].value for which in ("dense", stage))
        if dense is None or value is None or (measure.is_share and not dense):
            continue
        points.append(Point(n, record, measure.loss(dense, value), _draws(folder, stage, measure)))
    return points


def _draws(folder: Path, stage: str, measure: Measure) -> Samples | None:
    """Losses of resampled windows or questions; the same of them for every size, since the seed is."""
    answers = Answers(folder)
    name = measure.samples_name
    if name.endswith("/windows"):
        arrays = [answers.arrays.get(f"{which}/{name}") for which in ("dense", stage)]
        pair = [array.double().numpy() for array in arrays if array is not None]
    else:
        values_of_both = [answers.questions.get(which, {}).get(name) for which in ("dense", stage)]
        pair = [values[~numpy.isnan(values)] for values in values_of_both if values is not None]
    if len(pair) < 2 or len(pair[0]) != len(pair[1]) or len(pair[0]) < 2:
        return None
    size = len(pair[0])
    drawn = numpy.random.default_rng(0).integers(size, size=(DRAWS, size))
    draws = measure.of_means(pair[0][drawn].mean(axis=1), pair[1][drawn].mean(axis=1))
    return draws if numpy.isfinite(draws).all() else None


def steepness(loss: float, measure: Measure) -> float:
    """A loss on the scale on which equal steps weigh the same: nats of a perplexity, the loss itself otherwise."""
    if measure.name.startswith("ppl/"):
        return log_of(max(1 + loss, exp(-50))) if isfinite(loss) else loss
    return loss
