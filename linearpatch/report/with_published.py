"""Published figures beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from linearpatch.report.layouts import perplexity_columns, suite_columns, suites_of
from linearpatch.report.published import Published
from linearpatch.report.quantities import Entry, all_metrics
from linearpatch.report.tables import Cell, Column, Line, Table, labels_of, without_empty_heads
from linearpatch.results.units import number_text, unit_of


def beside_table(entries: Sequence[Entry], published: Sequence[Published]) -> Table | None:
    """One line for each published figure of a model that was measured too: both, and how far they are apart."""
    columns = _columns(entries, published)
    lines, sources = [], dict[str, None]()
    for row in published:
        for entry in (entry for entry in entries if matches(entry, row)):
            for key, figure in row.values.items():
                line = _line(entry, columns.get(key), figure)
                if line:
                    lines.append(line)
                    sources |= dict.fromkeys(row.sources)
    if not lines:
        return None
    heads = ("model", "layers", "pruner", "patch", "distill", "settings", "seeds", "metric")
    notes = [
        "difference: measured minus published, in points or in the unit of the metric; how each number was measured "
        "stands below the tables above, and published numbers may follow another protocol",
        *([f"published: {'; '.join(sources)}"] if sources else []),
    ]
    keys = ("measured", "published", "difference")
    title = "Measured beside published"
    table = Table("published", title, heads, keys, tuple(lines), (), keys)
    return without_empty_heads(replace(table, notes=(*table.spread_notes, *notes)))


def matches(entry: Entry, published: Published) -> bool:
    """Whether an entry is the model of a published line."""
    variant = entry.variant
    if not any(published.model in row.names for row in entry.rows) or variant.num_removed != published.num_removed:
        return False
    if variant.stage == "dense":
        return True
    recipe = (variant.pruner, variant.patch, variant.distill)
    return recipe == (published.pruner, published.patch, published.distill) and all(
        _same(row.settings.get(name) or _inherited(row.settings, name), value)
        for name, value in published.settings
        for row in entry.rows
    )


def _inherited(settings: Mapping[str, str], name: str) -> str | None:
    """A reader without a corpus of its own reads the run's."""
    return settings.get("corpus.name") if name.endswith(".corpus.name") else None


def _same(name: str | None, other: str) -> bool:
    """Whether two settings are the same number or the same word."""
    try:
        return name is not None and float(name) == float(other)
    except ValueError:
        return name == other


def _columns(entries: Sequence[Entry], published: Sequence[Published]) -> dict[str, Column]:
    known = all_metrics([row for entry in entries for row in entry.rows])
    columns = perplexity_columns(known, published)
    for suite in suites_of(known):
        columns += suite_columns(suite, known, published)
    return {column.key: column for column in columns}


def _line(entry: Entry, column: Column | None, figure: float) -> Line | None:
    value = entry.value(column.quantity) if column else None
    if column is None or value is None:
        return None
    unit = unit_of(column.unit)
    measured = value.mean * unit.factor
    spread = None if value.spread is None else value.spread * unit.factor
    cells = (
        Cell(number_text(value.mean, column.unit, value.spread), measured, spread),
        Cell(f"{figure:,.{unit.digits}f}", figure),
        Cell(f"{measured - figure:+,.{unit.digits}f}", measured - figure),
    )
    seeds = str(len(entry.rows)) if len(entry.rows) > 1 else ""
    labels = labels_of(entry.variant, seeds)
    return Line((*labels[:-1], column.key), cells, (entry.variant.model, str(entry.variant.num_removed)))
