"""Puts entries side by side: numbers in lines, the best of each column marked, and how they were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from linearpatch.report.differences import Ties
from linearpatch.report.published import Published
from linearpatch.report.quantities import Entry, Value
from linearpatch.report.rows import Variant
from linearpatch.report.tables import (
    HEADS,
    Cell,
    Column,
    Line,
    Table,
    labels_of,
    without_empty_heads,
)
from linearpatch.results.units import number_text, unit_of
from linearpatch.text import letter

PUBLISHED = "published"
Z95 = 1.96
BOLD = (
    "bold: the best of a model and number of removed layers, and all that aren't distinguishable from it: the 95 % "
    "interval of their difference contains zero (paired where windows, questions or seeds are the same)"
)


def compare(
    name: str,
    title: str,
    columns: Sequence[Column],
    entries: Sequence[Entry],
    published: Sequence[Published] = (),
    notes: Sequence[str] = (),
    apart: Sequence[str] = (),
    ties: Ties | None = None,
) -> Table | None:
    """One line for each entry that has a number, with published lines where they belong; None without a number.

    Args:
        name: Of its files.
        title: In words.
        columns: Those without any number are left out.
        entries: What was measured, in order.
        published: What was published.
        notes: What to say below it beside how it was measured.
        apart: Settings that have a column each.
        ties: Which entries a paired comparison can't tell apart.
    """
    heads = (*HEADS[:5], *(apart or HEADS[5:6]), *HEADS[6:])
    values = [(entry, [entry.value(column.quantity) for column in columns]) for entry in entries]
    published_keys = {key for published_row in published for key in published_row.values}
    shown = [
        at for at in range(len(columns)) if columns[at].key in published_keys or any(cells[at] for _, cells in values)
    ]
    kept = [columns[at] for at in shown]
    having = [(entry, [cells[at] for at in shown]) for entry, cells in values]
    having = [
        (entry, cells)
        for entry, cells in having
        if any(value and not column.derived for value, column in zip(cells, kept, strict=True))
    ]
    best = [
        _best([(entry, cells[at]) for entry, cells in having], column, ties or Ties(()))
        for at, column in enumerate(kept)
    ]
    lines = [
        (entry.variant, _line(entry, list(zip(kept, cells, (marks[row] for marks in best), strict=True)), apart))
        for row, (entry, cells) in enumerate(having)
    ]
    others = _published_lines(published, kept, entries)
    if not lines and not others:
        return None
    ordered = sorted([*lines, *others], key=lambda pair: (*pair[0].order[:6], pair[1].labels[-1] == PUBLISHED))
    titles, keys = tuple(column.title for column in kept), tuple(column.key for column in kept)
    table, how = _explained(Table(name, title, heads, titles, tuple(line for _, line in ordered), (), keys), kept)
    notes = [*table.spread_notes, *notes]
    if any(cell.best for line in table.lines for cell in line.cells):
        notes = [BOLD, *notes]
    return without_empty_heads(replace(table, notes=(*notes, *how, *_versions(entries))))


def _best(values: Sequence[tuple[Entry, Value | None]], column: Column, ties: Ties) -> list[bool]:
    """Which numbers are the best of their model and size, or not distinguishable from it; none where that is all."""
    sign = 1 if column.better == "lower" else -1
    groups: dict[tuple[str, int, str], list[tuple[float, int]]] = {}
    for at, (entry, value) in enumerate(values):
        if value and column.better and not entry.is_dense:
            key = (entry.variant.model, entry.variant.num_removed, value.reading.measured)
            groups.setdefault(key, []).append((sign * value.mean, at))
    marked = [False] * len(values)
    for members in groups.values():
        first = min(members)[1]
        tied = [at for _, at in members if at == first or _is_tie(values[first], values[at], column, ties)]
        for at in tied if len(tied) < len(members) else ():
            marked[at] = True
    return marked


def _is_tie(best: tuple[Entry, Value | None], other: tuple[Entry, Value | None], column: Column, ties: Ties) -> bool:
    """Whether zero lies in the interval of the difference: the paired one, or else that of independent errors."""
    known = ties.are_tied(best[0], other[0], column.metric)
    if known is not None:
        return known
    value, other_value = best[1], other[1]
    if value is None or other_value is None:
        return False
    if number_text(value.mean, column.unit) == number_text(other_value.mean, column.unit):
        return True
    if value.error is None or other_value.error is None:
        return False
    return abs(value.mean - other_value.mean) <= Z95 * math.hypot(value.error, other_value.error)


def _line(entry: Entry, measured: Sequence[tuple[Column, Value | None, bool]], apart: Sequence[str]) -> Line:
    seeds = len(entry.rows)
    cells = tuple(_cell(column, value, best=best) for column, value, best in measured)
    variant = entry.variant
    group = (variant.model, str(variant.num_removed))
    labels = labels_of(variant, str(seeds) if seeds > 1 else "", apart=apart)
    return Line(labels, cells, group)


def _cell(column: Column, value: Value | None, *, best: bool) -> Cell:
    if value is None:
        return Cell()
    scale = unit_of(column.unit).factor
    reading = value.reading
    stderr = reading.stderr if value.seeds == 1 else None
    text = number_text(value.mean, column.unit, stderr if value.spread is None else value.spread)
    if column.interval and value.seeds == 1 and reading.low is not None and reading.high is not None:
        text += f" [{number_text(reading.low, column.unit)}, {number_text(reading.high, column.unit)}]"
    spread, error = (None if number is None else number * scale for number in (value.spread, stderr))
    return Cell(text, value.mean * scale, spread, error, reading.measured if reading.protocol else "", best=best)


def _published_lines(
    published: Sequence[Published], columns: Sequence[Column], entries: Sequence[Entry]
) -> list[tuple[Variant, Line]]:
    """Published lines; of models that were measured too under the measured name."""
    names = {name: entry.variant for entry in entries for row in entry.rows for name in row.names}
    lines = []
    for published_row in published:
        if not any(column.key in published_row.values for column in columns):
            continue
        known = names.get(published_row.model)
        variant = published_row.variant(known.model if known else published_row.model, known.num_layers if known else 0)
        alike = [
            other
            for other in published
            if (other.model, other.num_removed) == (published_row.model, published_row.num_removed)
        ]
        cells = tuple(_published_cell(published_row, alike, column) for column in columns)
        lines.append(
            (
                variant,
                Line(labels_of(variant, source=PUBLISHED), cells, (variant.model, str(published_row.num_removed))),
            )
        )
    return lines


def _published_cell(row: Published, alike: Sequence[Published], column: Column) -> Cell:
    """A published number, bold where it is the best that was published of its model and size."""
    if column.key not in row.values:
        return Cell()
    value = row.values[column.key]
    rivals = [other.values[column.key] for other in alike if column.key in other.values]
    best_value = (min if column.better == "lower" else max)(rivals)
    best = bool(column.better) and row.num_removed > 0 and value == best_value and min(rivals) != max(rivals)
    return Cell(f"{value:,.2f}", value, key=PUBLISHED, best=best)


def _explained(table: Table, columns: Sequence[Column]) -> tuple[Table, list[str]]:
    """Say how each column was measured; where one holds numbers that aren't comparable, with a letter at each."""
    lettered = letters(
        [
            [(line.labels[0], line.cells[at].key) for line in table.lines if line.cells[at].key != PUBLISHED]
            for at in range(len(columns))
        ]
    )

    def mark(cell: Cell, index: int) -> Cell:
        return replace(cell, mark=lettered[cell.key]) if cell.key in lettered else cell

    lines = tuple(
        replace(table_line, cells=tuple(mark(cell, i) for i, cell in enumerate(table_line.cells)))
        for table_line in table.lines
    )
    measured: dict[str, list[str]] = {}
    for index, column in enumerate(columns):
        for key in dict.fromkeys(line.cells[index].key for line in lines):
            if key not in ("", PUBLISHED) and (key in lettered or not column.derived):
                measured.setdefault(key, []).append(column.title)
    notes = [
        (f"({lettered[key]}) " if key in lettered else "") + f"{', '.join(titles)}: {key}"
        for key, titles in measured.items()
    ]
    if lettered:
        notes.insert(0, "numbers with different letters were measured differently and aren't comparable")
    return replace(table, lines=lines), notes


def letters(columns: Sequence[Sequence[tuple[str, str]]]) -> dict[str, str]:
    """A letter for each way of measuring, in columns that hold several.

    Args:
        columns: Of each cell the model, and how it was measured on what, as `Cell.key`. Models have tokenizers of
            their own: other data alone is another way only within a model.
    """
    assigned: dict[str, str] = {}
    for cells in columns:
        by_model: dict[str, list[str]] = {}
        for model, key in dict.fromkeys(cells):
            if key:
                by_model.setdefault(model, []).append(key)
        words = {key.rpartition(", ")[0] for keys in by_model.values() for key in keys}
        if len(words) > 1 or any(len(keys) > 1 for keys in by_model.values()):
            for key in (key for keys in by_model.values() for key in keys):
                assigned.setdefault(key, letter(len(assigned)))
    return assigned


def _versions(entries: Sequence[Entry]) -> list[str]:
    by_package: dict[str, set[str]] = {}
    for entry in entries:
        for row in entry.rows:
            for package, version in row.packages.items():
                by_package.setdefault(package, set()).add(version)
    texts = [f"{package} {' and '.join(sorted(versions))}" for package, versions in by_package.items()]
    return [", ".join(texts)] if texts else []
