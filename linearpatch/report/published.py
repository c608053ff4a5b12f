"""Published figures: what a paper's tables say, to stand beside what was measured."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from linearpatch.errors import DataError
from linearpatch.report.rows import Variant

HEAD = ("table", "model", "num_pruned_layers", "pruner", "patch", "distill", "metric", "value", "source")


@dataclass(frozen=True)
class Published:
    """A line of a published table.

    Attributes:
        model: Name of a choice of the group `model`.
        num_removed: Layers that were removed; 0 for dense.
        pruner: As this package calls it, where it has it.
        patch: `none`, `rotate`, …
        distill: `none`, `output_kl`, …
        values: By metric; shares in percent, as papers print them.
        sources: Where they were read.
        settings: What else tells it from other lines, by dotted name.
    """

    model: str
    num_removed: int
    pruner: str
    patch: str
    distill: str
    values: Mapping[str, float] = field(default_factory=dict, compare=False)
    sources: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    def variant(self, model: str, num_layers: int) -> Variant:
        """The same as a variant of a model."""
        if self.num_removed == 0:
            return Variant(model, num_layers, "dense")
        stage = "distilled" if self.distill != "none" else "pruned" if self.patch == "none" else "patched"
        what = (self.num_removed, self.pruner, self.patch, self.distill, self.settings)
        return Variant(model, num_layers, stage, *what)


def read_published(file: Path) -> list[Published]:
    """Read published figures: one number a line, with the columns of `HEAD`.

    Further columns are settings, such as `calibration.num_blocks`, where lines differ in them; empty says nothing.

    Raises:
        DataError: the file can't be read, or a line isn't what it should be.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            return _read(file, lines)
    except (OSError, UnicodeError, csv.Error) as error:
        columns = ",".join(HEAD)
        raise DataError(f"{file} can't be read as CSV: {error}. Name a file with the columns {columns}.") from error


def _read(file: Path, lines: Iterator[str]) -> list[Published]:
    reader = csv.DictReader(lines, strict=True)
    missing = [name for name in HEAD if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{file}, line 1: no column {', '.join(missing)}. The columns are {','.join(HEAD)}.")
    more = [name for name in reader.fieldnames or () if name not in HEAD]
    rows: dict[Published, dict[str, tuple[float, str]]] = {}
    for line in reader:
        where = f"{file}, line {reader.line_num}"
        if None in line or None in line.values():
            columns = [*HEAD, *more]
            raise DataError(f"{where}: {len(columns)} columns are expected ({','.join(columns)}).")
        count = _number(where, "num_pruned_layers", line["num_pruned_layers"])
        if count < 0 or count != int(count):
            raise DataError(f"{where}: num_pruned_layers is {line['num_pruned_layers']!r}. Allowed: 0 (dense), 1, 2, …")
        if not line["model"] or not line["metric"]:
            raise DataError(f"{where}: model and metric must not be empty.")
        if count and not line["pruner"]:
            raise DataError(f"{where}: pruner is empty, but num_pruned_layers is {int(count)}. Name the pruner.")
        what = ("", "", "") if count == 0 else (line["pruner"], line["patch"] or "none", line["distill"] or "none")
        settings = tuple((name, line[name]) for name in more if line[name])
        model = Published(line["model"], int(count), *what, settings=settings)
        values = rows.setdefault(model, {})
        value = _number(where, "value", line["value"])
        earlier = values.setdefault(line["metric"], (value, line["source"] or line["table"]))
        if earlier[0] != value:
            raise DataError(
                f"{where}: {line['metric']} of this model is {value:g} here and {earlier[0]:g} further up. Remove one, "
                "or add a column with the setting in which the two differ."
            )
    return [
        replace(model, values={name: value for name, (value, _) in values.items()}, sources=_sources(values))
        for model, values in rows.items()
    ]


def _sources(values: Mapping[str, tuple[float, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for _, source in values.values() if source))


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {text!r}, not a number.")
    return value
