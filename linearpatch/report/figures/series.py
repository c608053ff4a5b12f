"""What figures of quality share: which entries belong together, what is drawn, and how each recipe looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from linearpatch.report.figures.style import Look, look
from linearpatch.report.layouts import metric_title
from linearpatch.report.quantities import Entry, Quantity, Reading, Value, all_metrics, metric, retained
from linearpatch.report.rows import Row

MOST_RECIPES = 12  # with a look of their own in one figure; others are grey


@dataclass(frozen=True)
class Quality:
    """What a vertical axis shows.

    Attributes:
        name: Of files.
        title: Of the axis.
        quantity: What is shown.
        lower_is_better: As of a perplexity, which has a logarithmic axis.
    """

    name: str
    title: str
    quantity: Quantity
    lower_is_better: bool

    def of(self, entry: Entry) -> Value | None:
        """The value of an entry."""
        return entry.value(self.quantity)

    def best_first(self, entries: Sequence[Entry]) -> list[Entry]:
        """Entries that have a value, in order."""
        values = [(entry, value.mean) for entry in entries if (value := self.of(entry))]
        sign = 1 if self.lower_is_better else -1
        return [entry for entry, value in sorted(values, key=lambda pair: (sign * pair[1], pair[0].name))]


def qualities(entries: Sequence[Entry]) -> list[Quality]:
    """Every perplexity, and what is retained of each average."""
    known = all_metrics([row for entry in entries for row in entry.rows])
    columns = [
        Quality(f"perplexity_{name[4:]}", metric_title(name), metric(name), lower_is_better=True)
        for name in known
        if name.startswith("ppl/")
    ]
    kept = {name for entry in entries for row in entry.rows for values in row.retained.values() for name in values}
    return columns + [
        Quality(f"retained_{name}", f"{metric_title(name)} retained, %", _percent(retained(name)), False)
        for name, measure in known.items()
        if measure.headline and name in kept
    ]


def by_model(entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
    """Entries of each model."""
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        models.setdefault(entry.variant.model, []).append(entry)
    return models


def measured_alike(entries: Sequence[Entry], quantity: Quantity) -> list[list[Entry]]:
    """Entries with a quantity, apart where it was measured in another way; the most first, none with dense alone."""
    by_protocol: dict[str, list[Entry]] = {}
    for entry in entries:
        value = entry.value(quantity)
        if value:
            by_protocol.setdefault(value.reading.measured, []).append(entry)
    groups = [group for group in by_protocol.values() if not all(entry.is_dense for entry in group)]
    return sorted(groups, key=len, reverse=True)


def looks_of(entries: Sequence[Entry]) -> dict[str, Look]:
    """A look for each recipe of a model, the same in all its figures; no two share colour, marker and dashes."""
    names = dict.fromkeys(entry.name for entry in entries if not entry.is_dense)
    return {name: look(at) for at, name in enumerate(names)}


def measured_how(quality: Quality, entries: Sequence[Entry]) -> str:
    """How a figure's numbers were measured, for its caption."""
    value = quality.of(entries[0])
    return f" ({value.reading.measured})" if value else ""


def _percent(quantity: Quantity) -> Quantity:
    """A quantity times 100."""

    def read(row: Row) -> Reading | None:
        value = quantity(row)
        if value is None:
            return None
        low, high = (None if end is None else 100 * end for end in (value.low, value.high))
        return replace(value, value=100 * value.value, low=low, high=high)

    return read
