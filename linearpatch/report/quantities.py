"""What tables and figures show of a row: a metric, an average, a share of dense, with how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from linearpatch.report.names import names_of
from linearpatch.report.rows import Row, Variant
from linearpatch.results.metric import Metric

MEAN_OF_RATIOS = "mean_of_ratios"  # retained performance as LinearPatch defines it


@dataclass(frozen=True)
class Reading:
    """A quantity of a row.

    Attributes:
        value: The number.
        protocol: How it was measured, in words.
        data: What it was measured on.
        low: Lower end of its 95 % interval, from the standard error over tokens or questions, or the record's own …
        high: … and the upper end.
        stderr: The standard error, where the interval comes from it.
    """

    value: float
    protocol: str
    data: str
    low: float | None = None
    high: float | None = None
    stderr: float | None = None

    @classmethod
    def with_error(cls, value: float, protocol: str, data: str, stderr: float | None) -> Reading:
        """A reading with the interval of its standard error."""
        if stderr is None:
            return cls(value, protocol, data)
        return cls(value, protocol, data, value - 1.96 * stderr, value + 1.96 * stderr, stderr)

    @property
    def measured(self) -> str:
        """How and on what, in words; readings are comparable where these are the same."""
        return f"{self.protocol}, {self.data}"


Quantity = Callable[[Row], Reading | None]


@dataclass(frozen=True)
class Value:
    """A quantity over the seeds of a variant.

    Attributes:
        mean: Over the seeds.
        spread: Sample standard deviation over the seeds; None for a single one.
        seeds: How many have it.
        reading: That of the first seed: how it was measured, and its interval.
    """

    mean: float
    spread: float | None
    seeds: int
    reading: Reading

    @property
    def error(self) -> float | None:
        """Standard error of the mean: over seeds, or over the data of a single seed."""
        if self.spread is not None:
            return self.spread / math.sqrt(self.seeds)
        low, high = self.reading.low, self.reading.high
        return None if low is None or high is None else (high - low) / (2 * 1.96)

    @property
    def interval(self) -> tuple[float, float] | None:
        """What error bars show: mean ± spread over seeds; of a single seed, the interval over its data."""
        if self.spread is not None:
            return self.mean - self.spread, self.mean + self.spread
        if self.reading.low is None or self.reading.high is None:
            return None
        return self.reading.low, self.reading.high


@dataclass(frozen=True)
class Entry:
    """A variant with all its seeds: what a line of a table stands for.

    Attributes:
        variant: Which model it is.
        rows: One for each seed, all measured in the same way.
        name: Of the recipe; no two entries of a model and size share it.
    """

    variant: Variant
    rows: tuple[Row, ...]
    name: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether nothing was removed."""
        return self.variant.stage == "dense"

    def value(self, quantity: Quantity) -> Value | None:
        """A quantity over the seeds that have it."""
        readings = [reading for row in self.rows if (reading := quantity(row)) is not None]
        if not readings:
            return None
        values = [reading.value for reading in readings]
        measured = len(values) > 1 and readings[0].protocol  # sizes have no spread
        return Value(fmean(values), stdev(values) if measured else None, len(values), readings[0])


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """Rows that differ in nothing but the seed, together."""
    groups: dict[Variant, list[list[Row]]] = {}
    for row in rows:
        buckets = groups.setdefault(row.variant, [])
        fitting = (
            bucket for bucket in buckets if all(row.seed != other.seed and row.agrees(other) for other in bucket)
        )
        bucket = next(fitting, None)
        if bucket is None:
            buckets.append([row])
        else:
            bucket.append(row)
    variants = [(variant, tuple(bucket)) for variant, buckets in groups.items() for bucket in buckets]
    return [Entry(variant, own, name) for (variant, own), name in zip(variants, names_of(variants), strict=True)]


def metric(name: str) -> Quantity:
    """A metric by its name."""

    def read(row: Row) -> Reading | None:
        measure = row.metrics.get(name)
        if measure is None or measure.value is None:
            return None
        return Reading.with_error(measure.value, measure.protocol, measure.data, measure.stderr)

    return read


def first_of(names: Sequence[str]) -> Quantity:
    """The first of some metrics that a row has."""

    def read(row: Row) -> Reading | None:
        return next((reading for name in names if (reading := metric(name)(row)) is not None), None)

    return read


def mean(names: Sequence[str]) -> Quantity:
    """The mean of some metrics, of rows that have them all."""

    def read(row: Row) -> Reading | None:
        readings = [reading for name in names if (reading := metric(name)(row)) is not None]
        if not readings or len(readings) < len(names):
            return None
        protocol = "; ".join(dict.fromkeys(reading.protocol for reading in readings))
        data = "; ".join(dict.fromkeys(reading.data for reading in readings))
        errors = [reading.stderr for reading in readings if reading.stderr is not None]
        error = math.hypot(*errors) / len(names) if len(errors) == len(names) else None  # of independent texts
        return Reading.with_error(fmean(reading.value for reading in readings), protocol, data, error)

    return read


def retained(name: str, definition: str = MEAN_OF_RATIOS) -> Quantity:
    """Retained performance of an average; dense keeps all of it."""

    def read(row: Row) -> Reading | None:
        measure = row.metrics.get(name)
        if measure is None:
            return None
        if row.variant.stage == "dense":
            return Reading(1.0, measure.protocol, measure.data)
        kept = row.retained.get(definition, {}).get(name)
        if kept is None:
            return None
        return Reading(kept.value, measure.protocol, measure.data, kept.low, kept.high)

    return read


@dataclass(frozen=True)
class Dense:
    """The dense models among some rows, to compare others with.

    Attributes:
        rows: By name of the model.
    """

    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @classmethod
    def among(cls, rows: Sequence[Row]) -> Dense:
        """Those of some rows."""
        by_model: dict[str, list[Row]] = {}
        for row in rows:
            if row.variant.stage == "dense":
                by_model.setdefault(row.variant.model, []).append(row)
        return cls(by_model)

    def times(self, quantity: Quantity) -> Quantity:
        """A quantity as a multiple of dense's, where both were measured in the same way on the same data."""

        def read(row: Row) -> Reading | None:
            value = quantity(row)
            if value is None or row.variant.stage == "dense":
                return None
            for other in self.rows.get(row.variant.model, ()):
                base = quantity(other)
                if base and base.value and base.measured == value.measured:
                    return Reading(value.value / base.value, value.protocol, value.data)
            return None

        return read


def ratio_of(name: str) -> Quantity:
    """How many times dense's a metric is, where the record compared them side by side."""

    def read(row: Row) -> Reading | None:
        measure = row.metrics.get(name)
        versus = measure.versus.get("dense") if measure else None
        if measure is None or not versus or "ratio" not in versus:
            return None
        return Reading(versus["ratio"], measure.protocol, measure.data, versus.get("low"), versus.get("high"))

    return read


def all_metrics(rows: Sequence[Row]) -> dict[str, Metric]:
    """Every metric that some row has a value of, with one of them."""
    metrics: dict[str, Metric] = {}
    for row in rows:
        for name, measure in row.metrics.items():
            if measure.value is not None:
                metrics.setdefault(name, measure)
    return metrics
