"""Puts entries side by side: numbers in lines, the best of each column marked, and how they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from linearpatch.report.published import Published
from linearpatch.report.quantities import Entry, Value
from linearpatch.report.rows import Variant
from linearpatch.report.tables import (
    HEADS,
    SHOWN,
    Cell,
    Column,
    Line,
    Table,
    labels_of,
    number_text,
    without_empty_heads,
)
from linearpatch.text import letter

PUBLISHED = "published"


def compare(
    name: str,
    title: str,
    columns: Sequence[Column],
    entries: Sequence[Entry],
    published: Sequence[Published] = (),
    notes: Sequence[str] = (),
    apart: Sequence[str] = (),
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
    """
    heads = (*HEADS[:5], *(apart or HEADS[5:6]), *HEADS[6:])
    values = [(entry, [entry.value(column.quantity) for column in columns]) for entry in entries]
    theirs = {key for one in published for key in one.values}
    shown = [at for at in range(len(columns)) if columns[at].key in theirs or any(found[at] for _, found in values)]
    lines = [
        (entry.variant, _line(entry, [(columns[index], found[index]) for index in shown], apart))
        for entry, found in values
        if any(found[index] for index in shown)
    ]
    others = _published_lines(published, [columns[index] for index in shown], entries)
    if not lines and not others:
        return None
    ordered = sorted([*lines, *others], key=lambda pair: (*pair[0].order[:6], pair[1].labels[-1] == PUBLISHED))
    kept = [columns[index] for index in shown]
    table = Table(
        name, title, heads, tuple(column.title for column in kept), tuple(line for _, line in ordered),
        (), tuple(column.key for column in kept),
    )  # fmt: skip
    table, how = _explained(_with_best(table, [column.better for column in kept]), kept)
    notes = [*table.seeds_note, *notes]
    if any(cell.best for line in table.lines for cell in line.cells):
        notes = ["bold: best of a model and number of removed layers, of numbers measured in the same way", *notes]
    return without_empty_heads(replace(table, notes=(*notes, *how, *_versions(entries))))


def _line(entry: Entry, found: Sequence[tuple[Column, Value | None]], apart: Sequence[str]) -> Line:
    seeds = len(entry.rows)
    cells = tuple(_cell(column, value) for column, value in found)
    variant = entry.variant
    group = (variant.model, str(variant.num_removed))
    labels = labels_of(variant, str(seeds) if seeds > 1 else "", apart=apart)
    return Line(labels, cells, group, variant.stage == "dense")


def _cell(column: Column, value: Value | None) -> Cell:
    if value is None:
        return Cell()
    scale = SHOWN.get(column.unit, (1, 2))[0]
    spread = None if value.spread is None else value.spread * scale
    key = f"{value.reading.protocol}, {value.reading.data}"
    text = number_text(value.mean, column.unit, value.spread)
    low, high = value.reading.low, value.reading.high
    if column.interval and value.seeds == 1 and low is not None and high is not None:
        text += f" [{number_text(low, column.unit)}, {number_text(high, column.unit)}]"
    return Cell(text, value.mean * scale, spread, key)


def _published_lines(
    published: Sequence[Published], columns: Sequence[Column], entries: Sequence[Entry]
) -> list[tuple[Variant, Line]]:
    """Published lines; of models that were measured too under the measured name."""
    names = {name: entry.variant for entry in entries for row in entry.rows for name in row.names}
    lines = []
    for one in published:
        cells = tuple(
            Cell(f"{one.values[column.key]:,.2f}", one.values[column.key], key=PUBLISHED)
            if column.key in one.values
            else Cell()
            for column in columns
        )
        if any(cell.value is not None for cell in cells):
            known = names.get(one.model)
            variant = one.variant(known.model if known else one.model, known.num_layers if known else 0)
            group = (variant.model, str(variant.num_removed))
            line = Line(labels_of(variant, source=PUBLISHED), cells, group, variant.stage == "dense")
            lines.append((variant, line))
    return lines


def _with_best(table: Table, better: Sequence[str]) -> Table:
    """Mark the best of each column within a group; dense never counts, and one alone isn't the best of anything."""
    best: dict[tuple[tuple[str, ...], int, str], list[float]] = {}
    for line in table.lines:
        for index, cell in enumerate(line.cells):
            if not line.dense and better[index] and cell.value is not None:
                best.setdefault((line.group, index, cell.key), []).append(_rounded(cell))

    def marked(line: Line, index: int, cell: Cell) -> Cell:
        rivals = best.get((line.group, index, cell.key), [])
        if line.dense or cell.value is None or len(rivals) < 2 or min(rivals) == max(rivals):
            return cell
        wanted = min(rivals) if better[index] == "lower" else max(rivals)
        return replace(cell, best=_rounded(cell) == wanted)

    lines = (replace(one, cells=tuple(marked(one, i, cell) for i, cell in enumerate(one.cells))) for one in table.lines)
    return replace(table, lines=tuple(lines))


def _rounded(cell: Cell) -> float:
    """A number as it is shown: what looks alike is equally good."""
    return float(cell.text.partition(" ")[0].replace(",", ""))


def _explained(table: Table, columns: Sequence[Column]) -> tuple[Table, list[str]]:
    """Say how each column was measured; where one holds numbers that don't compare, with a letter at each."""
    lettered = letters(
        [
            [(line.labels[0], line.cells[at].key) for line in table.lines if line.cells[at].key != PUBLISHED]
            for at in range(len(columns))
        ]
    )

    def mark(cell: Cell, index: int) -> Cell:
        return replace(cell, mark=lettered[cell.key]) if cell.key in lettered else cell

    lines = tuple(replace(one, cells=tuple(mark(cell, i) for i, cell in enumerate(one.cells))) for one in table.lines)
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
        notes.insert(0, "numbers with different letters were measured differently and don't compare")
    return replace(table, lines=lines), notes


def letters(columns: Sequence[Sequence[tuple[str, str]]]) -> dict[str, str]:
    """A letter for each way of measuring, in columns that hold several.

    Args:
        columns: Of each cell the model, and how it was measured on what, as `Cell.key`. Models have tokenizers of
            their own: other data alone is another way only within a model.
    """
    found: dict[str, str] = {}
    for cells in columns:
        by_model: dict[str, list[str]] = {}
        for model, key in dict.fromkeys(cells):
            if key:
                by_model.setdefault(model, []).append(key)
        words = {key.rpartition(", ")[0] for keys in by_model.values() for key in keys}
        if len(words) > 1 or any(len(keys) > 1 for keys in by_model.values()):
            for key in (key for keys in by_model.values() for key in keys):
                found.setdefault(key, letter(len(found)))
    return found


def _versions(entries: Sequence[Entry]) -> list[str]:
    found: dict[str, set[str]] = {}
    for entry in entries:
        for row in entry.rows:
            for package, version in row.packages.items():
                found.setdefault(package, set()).add(version)
    texts = [f"{package} {' and '.join(sorted(versions))}" for package, versions in found.items()]
    return [", ".join(texts)] if texts else []
