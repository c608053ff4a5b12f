"""Tables as values: lines of labels and cells, the best of each column marked, and how numbers were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from string import ascii_lowercase

from linearpatch.report.published import Published
from linearpatch.report.quantities import Entry, Quantity, Value
from linearpatch.report.rows import Variant

# Factor and digits in which tables show each unit. Shares are points, as papers have them.
SHOWN = {
    "share": (100, 2), "times": (1, 2), "bytes": (2**-20, 0), "s": (1000, 1), "1/s": (1, 1), "FLOP": (1e-9, 1),
    "count": (1e-6, 1),
}  # fmt: skip
LOWER = frozenset({"", "s", "bytes", "FLOP", "count"})  # units of which less is better: perplexity has none
PUBLISHED = "published"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        key: Its name in files, and in published figures, such as `qa/arc_challenge`.
        title: Its head.
        quantity: What it shows.
        unit: That of the quantity; see `SHOWN`.
        better: `lower`, `higher`, or nothing where none is best.
        derived: Whether it is made of other columns, which say how they were measured.
        interval: Whether cells tell the interval that the record holds.
    """

    key: str
    title: str
    quantity: Quantity
    unit: str = ""
    better: str = ""
    derived: bool = False
    interval: bool = False

    @classmethod
    def of(cls, key: str, title: str, quantity: Quantity, unit: str, *, derived: bool = False) -> Column:
        """A column in which the unit tells what is better."""
        return cls(key, title, quantity, unit, "lower" if unit in LOWER else "higher", derived)


@dataclass(frozen=True)
class Cell:
    """A number, or a text, in a table.

    Attributes:
        text: As people read it.
        value: The number in the unit of the text; None for a text.
        spread: Standard deviation over seeds, in the same unit.
        key: How it was measured; only equal keys compare.
        mark: Letter of the note that says how, where a column holds several.
        best: Whether none in its group is better.
    """

    text: str = ""
    value: float | None = None
    spread: float | None = None
    key: str = ""
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        labels: One for each label head.
        cells: One for each column.
        group: What it is compared within; a rule stands between groups.
        dense: Whether it is the dense model's, which is never the best.
    """

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    group: tuple[str, ...] = ()
    dense: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its files.
        title: In words.
        heads: Heads of the labels.
        columns: Heads of the cells.
        lines: In order.
        notes: How it was measured, and how to read it.
        keys: Names of the columns in CSV files.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=())

    @property
    def groups(self) -> list[list[Line]]:
        """Lines between rules."""
        return [list(lines) for _, lines in groupby(self.lines, key=lambda line: line.group)]

    @property
    def are_numbers(self) -> list[bool]:
        """Whether each column holds numbers; else it holds words."""
        return [any(line.cells[at].value is not None for line in self.lines) for at in range(len(self.columns))]


HEADS = ("model", "layers", "pruner", "patch", "distill", "settings", "seeds", "source")


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
    shown = [index for index in range(len(columns)) if any(found[index] for _, found in values)]
    lines = [
        (entry.variant, _line(entry, [(columns[index], found[index]) for index in shown], apart))
        for entry, found in values
        if any(found[index] for index in shown)
    ]
    theirs = _published_lines(published, [columns[index] for index in shown], [entry for entry, _ in values])
    if not lines and not theirs:
        return None
    ordered = sorted([*lines, *theirs], key=lambda pair: (*pair[0].order[:5], pair[1].labels[-1] == PUBLISHED))
    kept = [columns[index] for index in shown]
    table = Table(
        name, title, heads, tuple(column.title for column in kept), tuple(line for _, line in ordered),
        (), tuple(column.key for column in kept),
    )  # fmt: skip
    table, how = _explained(_with_best(table, [column.better for column in kept]), kept)
    if any(cell.spread is not None for line in table.lines for cell in line.cells):
        notes = ["mean ± standard deviation over seeds", *notes]
    if any(cell.best for line in table.lines for cell in line.cells):
        notes = ["bold: best of a model and number of removed layers, of numbers measured in the same way", *notes]
    return without_empty_heads(replace(table, notes=(*notes, *how, *_versions(entries))))


def number_text(value: float, unit: str, spread: float | None = None) -> str:
    """A number in the unit that tables show.

    >>> number_text(0.4625, "share"), number_text(13.221, "", 0.05), number_text(0.012, "s")
    ('46.25', '13.22 ± 0.05', '12.0')
    """
    scale, digits = SHOWN.get(unit, (1, 2 if abs(value) >= 0.1 or value == 0 else 4))
    return f"{value * scale:,.{digits}f}" + (f" ± {spread * scale:,.{digits}f}" if spread is not None else "")


def labels_of(variant: Variant, seeds: str = "", source: str = "", apart: Sequence[str] = ()) -> tuple[str, ...]:
    """A variant in the words of `HEADS`, some settings in columns of their own."""
    layers = f"{variant.num_removed}/{variant.num_layers}" if variant.num_layers else str(variant.num_removed)
    distill = "" if variant.distill == "none" else variant.distill
    pruner = "dense" if variant.stage == "dense" else variant.pruner
    settings = [dict(variant.settings).get(name, "") for name in apart] or [variant.settings_text]
    return variant.model, layers, pruner, variant.patch, distill, *settings, seeds, source


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
                found.setdefault(key, _letter(len(found)))
    return found


def _letter(index: int) -> str:
    """Letters in order: a to z, then aa, ab and so on."""
    more, last = divmod(index, len(ascii_lowercase))
    return (_letter(more - 1) if more else "") + ascii_lowercase[last]


def _versions(entries: Sequence[Entry]) -> list[str]:
    found: dict[str, set[str]] = {}
    for entry in entries:
        for row in entry.rows:
            for package, version in row.packages.items():
                found.setdefault(package, set()).add(version)
    told = [f"{package} {' and '.join(sorted(versions))}" for package, versions in found.items()]
    return [", ".join(told)] if told else []


def without_empty_heads(table: Table) -> Table:
    """A table without the labels that no line has."""
    kept = [at for at in range(len(table.heads)) if any(line.labels[at] for line in table.lines)]
    lines = tuple(replace(line, labels=tuple(line.labels[at] for at in kept)) for line in table.lines)
    return replace(table, heads=tuple(table.heads[at] for at in kept), lines=lines)
