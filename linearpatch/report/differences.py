"""How far recipes are apart: paired over windows of text, over questions, or over seeds, for any two of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy

from linearpatch.report.quantities import Entry, all_metrics
from linearpatch.report.rows import Row
from linearpatch.report.samples import Sample, Samples
from linearpatch.report.scales import Scale, scale_of
from linearpatch.report.statistics import Floats, Moments, Strata, holm, moments, t_tests
from linearpatch.results.metric import Metric

LEAST_SEEDS = 3  # fewer tell nothing about their spread
MOST_OF_ALL_SIZES = 150  # entries of a model; of more, only those of the same size are compared, and with dense


@dataclass(frozen=True)
class Difference:
    """The first entry minus the second, in the unit of the metric's scale: of perplexity in % of the second's.

    Attributes:
        first: Index of the entry …
        second: … and of the one it is compared with.
        value: None where the two can't be compared.
        low: Lower end of the 95 % interval of this one comparison, where known …
        high: … and the upper end.
        p: Of the paired t-test.
        adjusted: The same by Holm's method, over all pairs of the same metric and the same two sizes.
        basis: What it is paired over.
        reason: Why there is no value, or no interval.
    """

    first: int
    second: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    basis: str = ""
    reason: str = ""

    def reversed(self, scale: Scale) -> Difference:
        """The second minus the first."""
        return replace(
            self, first=self.second, second=self.first,
            value=scale.turned(self.value), low=scale.turned(self.high), high=scale.turned(self.low),
        )  # fmt: skip

    @property
    def is_tie(self) -> bool:
        """Whether the interval holds zero."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


@dataclass(frozen=True)
class Differences:
    """All pairs of entries of a model in a metric.

    Attributes:
        model: Name of the dense model.
        metric: What is compared.
        scale: What its differences are of.
        pairs: By the two indices, the smaller first.
        across_sizes: Whether entries of different sizes are compared, too.
    """

    model: str
    metric: str
    scale: Scale
    pairs: dict[tuple[int, int], Difference]
    across_sizes: bool = True

    def between(self, first: int, second: int) -> Difference | None:
        """The first minus the second, whichever was computed."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        reverse = self.pairs.get((second, first))
        return reverse.reversed(self.scale) if reverse else None


def compare_all(entries: Sequence[Entry], samples: Samples) -> list[Differences]:
    """Compare any two entries of a model in each of its headline perplexities, divergences and shares."""
    compared = []
    for model in dict.fromkeys(entry.variant.model for entry in entries):
        own = [at for at, entry in enumerate(entries) if entry.variant.model == model]
        known = all_metrics([row for at in own for row in entries[at].rows])
        for name, metric in known.items():
            scale = scale_of(name, metric)
            if scale is not None:
                having = [at for at in own if any(name in row.metrics for row in entries[at].rows)]
                chosen = list(combinations(having, 2))
                across = len(having) <= MOST_OF_ALL_SIZES
                if not across:
                    sizes = {at: entries[at].variant.num_removed for at in having}
                    chosen = [(a, b) for a, b in chosen if sizes[a] == sizes[b] or not (sizes[a] and sizes[b])]
                seeds = {at: _over_seeds(entries[at], name, scale) for at in having}
                pairs = [
                    _paired_over_seeds(pair, seeds) or _compare(entries, pair, name, scale, samples) for pair in chosen
                ]
                compared.append(Differences(model, name, scale, _tested(entries, pairs, scale), across))
    return [differences for differences in compared if differences.pairs]


def _over_seeds(entry: Entry, name: str, scale: Scale) -> tuple[object, Floats] | None:
    """Values of an entry's seeds, and what those of another must share to be paired; None of too few."""
    metrics = [row.metrics.get(name) for row in entry.rows]
    values = [metric.value for metric in metrics if metric and metric.value is not None]
    if len(values) < max(LEAST_SEEDS, len(metrics)) or (scale.logarithm and min(values) <= 0):
        return None
    key = [
        (row.seed, measured.protocol, measured.token_hash, measured.n)
        for row, measured in zip(entry.rows, metrics, strict=True)
        if measured
    ]
    return key, scale.applied(values)


def _paired_over_seeds(
    pair: tuple[int, int], seeds: Mapping[int, tuple[object, Floats] | None]
) -> tuple[Difference, Moments] | None:
    """The difference of two entries with the same seeds; None where they have others, or seeds change nothing."""
    first, second = seeds[pair[0]], seeds[pair[1]]
    if first is None or second is None or first[0] != second[0]:
        return None
    difference = moments([(1.0, first[1] - second[1])])
    return (Difference(*pair, basis=f"{len(first[1])} seeds"), difference) if difference.stderr else None


def _compare(
    entries: Sequence[Entry], pair: tuple[int, int], name: str, scale: Scale, samples: Samples
) -> tuple[Difference, Moments | None]:
    """A difference without its interval, and what that is computed from."""
    first, second = (entries[at] for at in pair)
    rows = _paired_rows(first, second)
    reason = next(
        (
            why
            for first_row, second_row in rows
            if (why := _unlike(first_row.metrics.get(name), second_row.metrics.get(name)))
        ),
        "",
    )
    if reason:
        return Difference(*pair, reason=reason), None
    values = numpy.array([[row.metrics[name].value for row in rows_of_one] for rows_of_one in rows], dtype=float)
    if scale.logarithm and values.min() <= 0:
        return Difference(*pair, reason="a perplexity of zero"), None
    applied = scale.applied(values)
    apart = applied[:, 0] - applied[:, 1]
    if len(rows) >= LEAST_SEEDS and (over_seeds := moments([(1.0, apart)])).stderr:
        return Difference(*pair, basis=f"{len(rows)} seeds"), over_seeds
    strata = _strata(rows, name, samples)
    if isinstance(strata, str):
        return Difference(*pair, reason=f"no interval: {strata}"), Moments(float(apart.mean()), None, 0)
    differences, basis = strata
    if len(rows) > 1:
        basis += f", mean of {len(rows)} seeds"
    return Difference(*pair, basis=basis), moments(differences)


def _paired_rows(first: Entry, second: Entry) -> list[tuple[Row, Row]]:
    """Rows of the same seeds; dense has none and is compared with all; where none is shared, the first of each."""
    if first.is_dense or second.is_dense:
        return [(first_row, second_row) for first_row in first.rows for second_row in second.rows]
    others = {row.seed: row for row in second.rows}
    shared = [(row, others[row.seed]) for row in first.rows if row.seed in others]
    return shared or [(first.rows[0], second.rows[0])]


def _unlike(first: Metric | None, second: Metric | None) -> str:
    """Why two metrics can't be compared; empty where they can."""
    if first is None or second is None:
        return "not measured with the same seed"
    if first.value is None or second.value is None:
        return (first.reason or second.reason or "") or "no value"
    if first.protocol != second.protocol:
        return f"other protocol: {first.protocol} and {second.protocol}"
    if (first.token_hash, first.n) != (second.token_hash, second.n):
        return f"other text or questions: {first.data} and {second.data}"
    return ""


def _strata(rows: Sequence[tuple[Row, Row]], name: str, samples: Samples) -> tuple[Strata, str] | str:
    """Differences at each window or question, mean over seeds; or the reason why there are none."""
    totals: list[Floats] = []
    weights: tuple[float, ...] = ()
    basis = ""
    for first_row, second_row in rows:
        first, second = samples.of(first_row, name), samples.of(second_row, name)
        if isinstance(first, str) or isinstance(second, str):
            return first if isinstance(first, str) else str(second)
        if not _match(first, second):
            return "the windows or questions of the two aren't the same"
        apart = [
            first_value - second_value for first_value, second_value in zip(first.values, second.values, strict=True)
        ]
        totals = [total + more for total, more in zip(totals, apart, strict=True)] if totals else list(apart)
        weights, basis = first.weights, f"{first.count:,} {first.counted}"
    return [(weight, total / len(rows)) for weight, total in zip(weights, totals, strict=True)], basis


def _match(first: Sample, second: Sample) -> bool:
    """Whether two samples are of the same windows or questions."""
    return (first.counted, first.documents, list(map(len, first.values))) == (
        second.counted, second.documents, list(map(len, second.values)),
    )  # fmt: skip


def _tested(
    entries: Sequence[Entry], pairs: Sequence[tuple[Difference, Moments | None]], scale: Scale
) -> dict[tuple[int, int], Difference]:
    """Differences with intervals, p-values, and those adjusted for the matrix that they stand in."""
    tests = iter(t_tests([moment for _, moment in pairs if moment]))
    families: dict[tuple[int, int], list[Difference]] = {}
    for difference, moment in pairs:
        if moment:
            test = next(tests)
            low, high, p = test if test else (None, None, None)
            reason = difference.reason
            if test is None and not reason:
                reason = "no interval: a single value, or differences without spread"
            difference = replace(
                difference, value=scale.shown(moment.mean), low=scale.shown(low),
                high=scale.shown(high), p=p, reason=reason,
            )  # fmt: skip
        sizes = sorted(entries[at].variant.num_removed for at in (difference.first, difference.second))
        families.setdefault((sizes[0], sizes[1]), []).append(difference)
    tested = {}
    for family in families.values():
        adjusted = iter(holm([pair.p for pair in family if pair.p is not None]))
        for pair in family:
            tested[pair.first, pair.second] = pair if pair.p is None else replace(pair, adjusted=next(adjusted))
    return tested


class Ties:
    """Which entries the interval of a paired difference can't tell apart.

    Args:
        entries: Those compared …
        found: … and how far they are apart.
    """

    def __init__(self, entries: Sequence[Entry], compared: Sequence[Differences] = ()) -> None:
        self._places = {id(entry): at for at, entry in enumerate(entries)}
        self._compared = {(differences.model, differences.metric): differences for differences in compared}

    def are_tied(self, first: Entry, second: Entry, name: str) -> bool | None:
        """Whether zero lies in the interval of two entries' difference in a metric; None where it isn't known."""
        differences = self._compared.get((first.variant.model, name))
        places = self._places.get(id(first)), self._places.get(id(second))
        if differences is None or places[0] is None or places[1] is None:
            return None
        pair = differences.between(places[0], places[1])
        return pair.is_tie if pair and pair.low is not None else None
