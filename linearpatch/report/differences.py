"""How far patches are apart: paired over seeds, or over questions where there is one seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from scipy import stats

from linearpatch.report.quantities import Entry, all_metrics
from linearpatch.report.tables import Cell, Line, Table, without_empty_heads
from linearpatch.results.metric import Metric

NOTES = (
    "patch minus the other: perplexity in % (from the mean difference of its logarithm), shares in points",
    "over seeds: paired t-test, 95 % interval of the mean difference; over questions: paired bootstrap of the record",
    "p is for one comparison; with many of them, some are small by chance",
)


@dataclass(frozen=True)
class Difference:
    """How far two patches are apart in a metric.

    Attributes:
        value: Mean difference: of perplexity in %, of shares in points.
        low: Lower end of its 95 % interval, where known …
        high: … and the upper end.
        p: Of the paired t-test.
        basis: What it is over.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    basis: str


def over_seeds(mine: Sequence[float], other: Sequence[float], *, logarithm: bool) -> Difference:
    """Compare values of the same seeds, in order.

    Args:
        mine: One for each seed, at least two.
        other: The same of the other.
        logarithm: Whether to compare logarithms, and give the change in %; else in points.
    """
    if logarithm:
        mine, other = [math.log(value) for value in mine], [math.log(value) for value in other]

    def change(value: float) -> float:
        return 100 * (math.expm1(value) if logarithm else value)

    apart = [first - second for first, second in zip(mine, other, strict=True)]
    low = high = p = None
    if len(apart) > 2 and max(apart) - min(apart) > 1e-12 * max(1.0, *map(abs, apart)):  # else there is no spread
        test = stats.ttest_rel(mine, other)
        interval = test.confidence_interval(0.95)
        low, high, p = change(float(interval.low)), change(float(interval.high)), float(test.pvalue)
    return Difference(change(fmean(apart)), low, high, p, f"{len(apart)} seeds")


def differences_table(entries: Sequence[Entry]) -> Table | None:
    """Every pair of patches of the same model, pruner and number of layers, in every headline metric."""
    groups: dict[tuple[str, int, str], list[Entry]] = {}
    for entry in entries:
        variant = entry.variant
        if variant.stage != "dense":
            groups.setdefault((variant.model, variant.num_removed, variant.pruner), []).append(entry)
    lines = [line for group in groups.values() for line in _lines(group)]
    heads = ("model", "layers", "pruner", "patch", "against", "metric")
    columns = ("difference", "95 % interval", "p", "over")
    keys = ("difference", "interval", "p", "over")
    table = Table("differences", "Differences", heads, columns, tuple(lines), NOTES, keys)
    return without_empty_heads(table) if lines else None


def _lines(group: Sequence[Entry]) -> Iterator[Line]:
    known = all_metrics([row for entry in group for row in entry.rows])
    names = [name for name, measure in known.items() if measure.headline and measure.unit in ("", "share")]
    names = [name for name in names if name.startswith("ppl/") or known[name].unit == "share"]
    for other, mine in combinations(group, 2):
        for name in names:
            difference = _difference(mine, other, name)
            if difference:
                variant = mine.variant
                where = (variant.model, f"{variant.num_removed}/{variant.num_layers}", variant.pruner)
                labels = (*where, _called(mine), _called(other), name)
                yield Line(labels, _cells(difference), where)


def _difference(mine: Entry, other: Entry, name: str) -> Difference | None:
    """Over the seeds that both have; over questions where both are stages of one run."""
    first, second = ({row.seed: row.metrics.get(name) for row in entry.rows} for entry in (mine, other))
    seeds = sorted(first.keys() & second.keys())
    pairs = [(first[seed], second[seed]) for seed in seeds if _alike(first[seed], second[seed])]
    values = [(one.value, two.value) for one, two in pairs if one and two]
    both = [(one, two) for one, two in values if one is not None and two is not None]
    logarithm = name.startswith("ppl/")
    if len(both) > 1 and (not logarithm or min(min(pair) for pair in both) > 0):
        return over_seeds([one for one, _ in both], [two for _, two in both], logarithm=logarithm)
    if len(pairs) == 1 and pairs[0][0] and set(mine.rows[0].runs) & set(other.rows[0].runs):
        versus = pairs[0][0].versus.get(other.variant.stage, {})
        if "difference" in versus and "low" in versus:
            basis = f"{pairs[0][0].n:,} {pairs[0][0].counted}"
            return Difference(100 * versus["difference"], 100 * versus["low"], 100 * versus["high"], None, basis)
    return None


def _alike(first: Metric | None, second: Metric | None) -> bool:
    return first is not None and second is not None and first.is_comparable(second)


def _called(entry: Entry) -> str:
    variant = entry.variant
    name = variant.patch + (f" + {variant.distill}" if variant.distill not in ("", "none") else "")
    return f"{name} ({variant.settings_text})" if variant.settings else name


def _cells(difference: Difference) -> tuple[Cell, ...]:
    low, high, p = difference.low, difference.high, difference.p
    interval = "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"
    p_text = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return (
        Cell(f"{difference.value:+.2f}", difference.value),
        Cell(interval),
        Cell(p_text, p),
        Cell(difference.basis),
    )
