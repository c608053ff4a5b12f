"""Tables as values: lines of labels and cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from linearpatch.report.quantities import Quantity
from linearpatch.report.rows import Variant

# Factor and digits in which tables show each unit. Shares are points, as papers have them.
SHOWN = {
    "share": (100, 2), "times": (1, 2), "bytes": (2**-20, 0), "s": (1000, 1), "1/s": (1, 1), "FLOP": (1e-9, 1),
    "count": (1e-6, 1),
}  # fmt: skip
LOWER = frozenset({"", "s", "bytes", "FLOP", "count"})  # units of which less is better: perplexity has none


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
        interval: Whether cells show the interval that the record holds.
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
        """A column in which the unit decides what is better."""
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
        all_right: Whether all cells are aligned right; else those of columns with numbers.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=())
    all_right: bool = False

    @property
    def seeds_note(self) -> tuple[str, ...]:
        """What ± means, where a number has it."""
        spread = any(cell.spread is not None for line in self.lines for cell in line.cells)
        return ("mean ± standard deviation over seeds",) if spread else ()

    @property
    def groups(self) -> list[list[Line]]:
        """Lines between rules."""
        return [list(lines) for _, lines in groupby(self.lines, key=lambda line: line.group)]

    @property
    def are_numbers(self) -> list[bool]:
        """Whether each column holds numbers; else it holds words."""
        return [
            self.all_right or any(line.cells[at].value is not None for line in self.lines)
            for at in range(len(self.columns))
        ]


HEADS = ("model", "layers", "pruner", "patch", "distill", "settings", "seeds", "source")


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


def without_empty_heads(table: Table) -> Table:
    """A table without the labels that no line has."""
    kept = [at for at in range(len(table.heads)) if any(line.labels[at] for line in table.lines)]
    lines = tuple(replace(line, labels=tuple(line.labels[at] for at in kept)) for line in table.lines)
    return replace(table, heads=tuple(table.heads[at] for at in kept), lines=lines)
