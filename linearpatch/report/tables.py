"""Tables as values: lines of labels and cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from linearpatch.report.quantities import Quantity
from linearpatch.report.rows import Variant

LOWER = frozenset({"", "s", "bytes", "FLOP", "count"})  # units of which less is better: perplexity has none


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        key: Its name in files, and in published figures, such as `qa/arc_challenge`.
        title: Its head.
        quantity: What it shows.
        unit: That of the quantity; see `results.units`.
        better: `lower`, `higher`, or nothing where none is best.
        derived: Whether it is made of other columns, which say how they were measured.
        interval: Whether cells show the interval that the record holds.
        metric: The metric whose paired differences tell which numbers are ties.
    """

    key: str
    title: str
    quantity: Quantity
    unit: str = ""
    better: str = ""
    derived: bool = False
    interval: bool = False
    metric: str = ""

    @classmethod
    def of(
        cls, key: str, title: str, quantity: Quantity, unit: str, *, derived: bool = False, metric: str = ""
    ) -> Column:
        """A column in which the unit decides what is better."""
        return cls(key, title, quantity, unit, "lower" if unit in LOWER else "higher", derived, metric=metric)


@dataclass(frozen=True)
class Cell:
    """A number, or a text, in a table.

    Attributes:
        text: As people read it.
        value: The number in the unit of the text; None for a text.
        spread: Standard deviation over seeds, in the same unit.
        stderr: Standard error over windows or questions, in the same unit.
        key: How it was measured; only equal keys compare.
        mark: Letter of the note that says how, where a column holds several.
        best: Whether it is set in bold.
    """

    text: str = ""
    value: float | None = None
    spread: float | None = None
    stderr: float | None = None
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
    """

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    group: tuple[str, ...] = ()


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
    def spread_notes(self) -> tuple[str, ...]:
        """What ± means, where a number has it."""
        cells = [cell for line in self.lines for cell in line.cells]
        over_seeds = any(cell.spread is not None for cell in cells)
        errors = any(cell.stderr is not None for cell in cells)
        return (
            *(("mean ± standard deviation over seeds",) if over_seeds else ()),
            *((f"±{', of a single seed' * over_seeds}: standard error over windows or questions",) if errors else ()),
        )

    @property
    def are_right(self) -> list[bool]:
        """Whether each head and column is aligned right, as numbers and sizes are."""
        return [head in NUMBER_HEADS for head in self.heads] + self.are_numbers

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


NUMBER_HEADS = frozenset({"layers", "seeds"})
HEADS = ("model", "layers", "pruner", "patch", "distill", "settings", "seeds", "source")


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
