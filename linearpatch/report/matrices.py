"""Differences as tables: a matrix of recipes for each metric and size, and every pair in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas

from linearpatch.report.differences import Difference, Differences
from linearpatch.report.layouts import metric_title
from linearpatch.report.quantities import Entry, metric
from linearpatch.report.tables import Cell, Line, Table
from linearpatch.text import letter

LEVEL = 0.05
MOST_RECIPES = 12  # of a matrix: the best; all pairs are in the file of differences


def matrix_tables(entries: Sequence[Entry], compared: Sequence[Differences]) -> list[Table]:
    """For each metric and number of removed layers, how far each recipe (row) is from each other one (column)."""
    tables = []
    for differences in compared:
        indices = sorted({at for pair in differences.pairs for at in pair})
        for size in sorted({entries[at].variant.num_removed for at in indices} - {0}):
            members = [at for at in indices if entries[at].variant.num_removed == size]
            if len(members) > 1:
                tables.append(_matrix(entries, differences, size, ranked(entries, members, differences)))
    return tables


def ranked(entries: Sequence[Entry], members: Sequence[int], differences: Differences) -> list[int]:
    """Entries by their value in a metric, the best first; those measured alike stand together, most of them first."""
    values = {at: value for at in members if (value := entries[at].value(metric(differences.metric)))}
    alike = {at: value.reading.measured for at, value in values.items()}
    number = Counter(alike.values())
    sign = 1 if differences.scale.lower_is_better else -1
    return sorted(values, key=lambda at: (-number[alike[at]], alike[at], sign * values[at].mean))


def _matrix(entries: Sequence[Entry], differences: Differences, size: int, members: Sequence[int]) -> Table:
    shown = members[:MOST_RECIPES]
    pairs = [
        difference_of_pair
        for row in shown
        for column in shown
        if row < column and (difference_of_pair := differences.between(row, column))
    ]
    reasons = list(dict.fromkeys(pair.reason for pair in pairs if pair.reason))
    letters = {reason: letter(at) for at, reason in enumerate(reasons)}
    lines = tuple(
        Line(
            (f"{at}. {entries[row].name}",), tuple(_cell(differences.between(row, column), letters) for column in shown)
        )
        for at, row in enumerate(shown, 1)
    )
    unit = differences.scale.unit
    variant = entries[members[0]].variant
    tests = sum(difference.p is not None for at, row in enumerate(members) for column in members[at + 1 :]
                if (difference := differences.between(row, column)))  # fmt: skip
    together = " of those measured alike" if any(pair.value is None for pair in pairs) else ""
    notes = [
        f"row minus column, in {unit}; the best recipe{together} first; [95 % interval of this one comparison]",
        _bold(tests),
        *_bases(pairs),
        *(f"({mark}) {reason}" for reason, mark in letters.items()),
    ]
    if len(members) > len(shown):
        notes.append(f"the best {len(shown)} of {len(members)} recipes; all pairs are in differences.csv")
    if not differences.across_sizes:
        notes.append("of so many recipes, those of different sizes aren't compared")
    names = tuple(entries[at].name for at in shown)
    numbers = tuple(f"{at}." for at in range(1, len(shown) + 1))
    title = f"{metric_title(differences.metric)} of {variant.model}, {size} of {variant.num_layers} layers removed"
    return Table(
        f"matrix_{differences.metric}_{variant.model}_{size}", f"Recipes compared: {title}",
        ("recipe",), numbers, lines, tuple(notes), names, all_right=True,
    )  # fmt: skip


def _bold(tests: int) -> str:
    if tests == 1:
        return f"bold: p < {LEVEL:g} (paired t-test)"
    return (
        f"bold: p < {LEVEL:g} by Holm's method over all {tests} comparisons of this size "
        "(paired t-test): the chance of any false positive among them is at most 5 %"
    )


def _bases(pairs: Sequence[Difference]) -> list[str]:
    bases = list(dict.fromkeys(pair.basis for pair in pairs if pair.basis))
    return [f"paired over {'; '.join(bases)}"] if bases else []


def _cell(difference: Difference | None, letters: dict[str, str]) -> Cell:
    if difference is None:
        return Cell("")
    mark = letters.get(difference.reason, "")
    if difference.value is None:
        return Cell("not comparable", mark=mark)
    if difference.low == difference.high == 0:
        return Cell("identical", difference.value)
    interval = (
        ""
        if difference.low is None or difference.high is None
        else f" [{difference.low:+,.1f}, {difference.high:+,.1f}]"
    )
    is_significant = difference.adjusted is not None and difference.adjusted < LEVEL
    return Cell(f"{difference.value:+,.1f}{interval}", difference.value, mark=mark, best=is_significant)


def differences_frame(entries: Sequence[Entry], differences: Sequence[Differences]) -> pandas.DataFrame:
    """Every pair of every metric, at any two sizes, one a line; those that can't be compared with the reason."""
    return pandas.DataFrame(list(_pair_lines(entries, differences)))


def _pair_lines(entries: Sequence[Entry], compared: Sequence[Differences]) -> Iterator[dict[str, object]]:
    for differences in compared:
        for pair in differences.pairs.values():
            first, second = entries[pair.first], entries[pair.second]
            yield {
                "model": differences.model, "metric": differences.metric,
                "recipe": first.name, "num_pruned_layers": first.variant.num_removed,
                "against": second.name, "against_num_pruned_layers": second.variant.num_removed,
                "difference": pair.value, "unit": differences.scale.unit,
                "low": pair.low, "high": pair.high, "p": pair.p, "p_holm": pair.adjusted,
                "paired_over": pair.basis, "reason": pair.reason,
            }  # fmt: skip
