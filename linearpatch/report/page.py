"""One page to explore all runs: it works from disk, without a network, and takes nothing in records for HTML."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any

from linearpatch.report.compare import letters
from linearpatch.report.differences import Differences
from linearpatch.report.figures.style import Drawing
from linearpatch.report.layouts import PARAMETERS, headline_columns, metric_title, speed_columns
from linearpatch.report.matrices import LEVEL
from linearpatch.report.quantities import Dense, Entry, Value, all_metrics, metric, retained
from linearpatch.report.reading import ReadRuns, Run
from linearpatch.report.tables import Column, Table, labels_of
from linearpatch.results.metric import DEFINITIONS
from linearpatch.results.units import unit_of
from linearpatch.text import printable, printable_values, removal_list

SCRIPTS = ("page.js", "table.js", "matrix.js", "figures.js", "details.js", "start.js")
SLOT = re.compile(r"<!--slot:(\w+)-->")


def write_page(
    title: str,
    entries: Sequence[Entry],
    selected: ReadRuns,
    tables: Sequence[Table],
    differences: Sequence[Differences],
    drawings: Sequence[Drawing],
) -> str:
    """The page as HTML, with styles, scripts, figures and all data inside.

    Args:
        title: Its head.
        entries: Lines of the table, points of the plots.
        selected: The runs that details show, and those left out.
        tables: Those of the report.
        differences: Between any two entries.
        drawings: The figures of the report.
    """
    shown = columns_of(entries)
    columns = [column for column, _ in shown]
    runs = selected.runs
    data = {
        "title": title,
        "columns": [
            {"key": column.key, "title": column.title, "digits": unit_of(column.unit).digits, "shown": at_start}
            for column, at_start in shown
        ],
        **_lines(entries, columns, {run.record.run_id: at for at, run in enumerate(runs)}),
        **_differences(differences),
        "tables": [_table(table) for table in tables],
        "failures": [asdict(failure) | {"folder": str(failure.folder)} for failure in selected.failures],
        "remarks": list(selected.remarks),
    }
    web = files("linearpatch.report") / "web"
    scripts = [(web / name).read_text(encoding="utf-8") for name in SCRIPTS]
    slots = {
        "title": html.escape(printable(title)),
        "hashes": " ".join(_hash(script) for script in scripts),
        "style": (web / "page.css").read_text(encoding="utf-8"),
        "data": script_json(data),
        "runs": script_json([_details(run) for run in runs]),
        "images": script_json([_figure(drawing) for drawing in drawings]),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return SLOT.sub(lambda slot: slots[slot[1]], (web / "page.html").read_text(encoding="utf-8"))


def columns_of(entries: Sequence[Entry]) -> list[tuple[Column, bool]]:
    """All columns that the page can show, and whether it does so from the start: what stands for each evaluation."""
    rows = [row for entry in entries for row in entry.rows]
    known = all_metrics(rows)
    columns = [(column, True) for column in (*headline_columns(known, Dense.among(rows)), PARAMETERS)]
    columns += [(replace(speed, title=f"speed {speed.title}"), False) for speed in speed_columns("speed", known)]
    kept = dict.fromkeys(name for row in rows for averages in row.retained.values() for name in averages)
    columns += [
        (Column(f"{name}/{key}", f"{name} retained, {words}", retained(name, key), "share"), False)
        for name in kept
        for key, words in DEFINITIONS.items()
    ]
    columns += [(Column(name, name, metric(name), measure.unit), False) for name, measure in known.items()]
    first: dict[str, tuple[Column, bool]] = {}
    for column, shown in columns:
        first.setdefault(column.key, (column, shown))
    return list(first.values())


def _figure(drawing: Drawing) -> dict[str, Any]:
    """A figure: one with a part for each recipe as a drawing, others as the picture that the files hold."""
    width, height = (round(96 * inches) for inches in drawing.figure.get_size_inches())
    shown = {"name": drawing.name, "caption": drawing.caption, "width": width, "height": height}
    if drawing.recipes:
        return shown | {"svg": drawing.svg, "model": drawing.model, "recipes": drawing.recipes}
    return shown | {"png": base64.b64encode(drawing.png).decode()}


def _differences(compared: Sequence[Differences]) -> dict[str, Any]:
    """Pairs of lines with all that is known of each; words that many share stand once."""
    words: dict[str, int] = {}

    def number(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.6g}")  # rounded again to one decimal, as tables round

    content = [
        {
            "model": differences.model, "metric": differences.metric,
            "unit": differences.scale.unit,
            "lowerIsBetter": differences.scale.lower_is_better, "acrossSizes": differences.across_sizes,
            "title": f"{metric_title(differences.metric)}, {differences.model}",
            "pairs": [
                [
                    pair.first, pair.second, number(pair.value), number(pair.low), number(pair.high),
                    number(pair.adjusted), words.setdefault(pair.basis, len(words)),
                    words.setdefault(pair.reason, len(words)),
                ]
                for pair in differences.pairs.values()
            ],
        }
        for differences in compared
    ]  # fmt: skip
    return {"differences": content, "words": list(words), "level": LEVEL}


def script_json(content: Any) -> str:
    r"""JSON that may stand in a script element: nothing in it ends the element or begins a comment.

    >>> script_json({"a": "</script><!--"})
    '{"a":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(printable_values(content), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _lines(entries: Sequence[Entry], columns: Sequence[Column], run_index: dict[str, int]) -> dict[str, Any]:
    """Lines and how their numbers were measured."""
    values_of_entries = [[entry.value(column.quantity) for column in columns] for entry in entries]
    keys = [
        [(entry.variant.model, _measured(values[at])) for entry, values in zip(entries, values_of_entries, strict=True)]
        for at in range(len(columns))
    ]
    marks = [letters([mark]) for mark in keys]
    protocols: dict[str, int] = {}
    lines = []
    for entry, values in zip(entries, values_of_entries, strict=True):
        variant, labels = entry.variant, labels_of(entry.variant)
        lines.append(
            {
                "model": variant.model, "numLayers": variant.num_layers, "n": variant.num_removed,
                "stage": variant.stage, "pruner": labels[2], "patch": variant.patch, "distill": variant.distill,
                "settings": variant.settings_text, "name": entry.name,
                "seeds": sorted({row.seed for row in entry.rows}),
                "removed": [_removed(row.removed) for row in entry.rows],
                "runs": sorted({run_index[run] for row in entry.rows for run in row.runs if run in run_index}),
                "values": {
                    str(at): _number(value, columns[at], protocols, marks[at])
                    for at, value in enumerate(values)
                    if value is not None
                },
            }
        )  # fmt: skip
    return {"lines": lines, "protocols": list(protocols)}


def _removed(units: Sequence[int | str]) -> list[int | str]:
    """Layers in order, which the page shows as ranges; sublayers in words."""
    layers = [unit for unit in units if isinstance(unit, int)]
    return [*sorted(layers)] if len(layers) == len(units) else [removal_list(units)]


def _number(value: Value, column: Column, protocols: dict[str, int], marks: dict[str, str]) -> dict[str, Any]:
    """A number in the unit that is shown, with its interval, protocol and letter."""
    scale = unit_of(column.unit).factor
    key = _measured(value)
    content: dict[str, Any] = {"v": value.mean * scale, "p": protocols.setdefault(key, len(protocols))}
    if value.spread is not None:
        content["s"] = value.spread * scale
    elif value.reading.stderr is not None:
        content["e"] = value.reading.stderr * scale
    if value.interval:
        content["i"] = [end * scale for end in value.interval]
    if key in marks:
        content["m"] = marks[key]
    return content


def _measured(value: Value | None) -> str:
    return value.reading.measured if value else ""


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "heads": [*table.heads, *table.columns],
        "numbers": table.are_right,
        "groups": [
            [[*line.labels, *({"t": c.text, "b": c.best, "m": c.mark} for c in line.cells)] for line in group]
            for group in table.groups
        ],
        "notes": list(table.notes),
    }


def _details(run: Run) -> dict[str, Any]:
    """All that a record holds but its numbers, which the table shows."""
    left_out = {"metrics", "retained", "answered", "schema_version"}
    details = {name: value for name, value in run.record.to_plain().items() if name not in left_out}
    for name, large in (("pruning", "scores"), ("distillation", "curve")):
        details[name] = {key: value for key, value in (details[name] or {}).items() if key != large}
    return {"folder": str(run.folder), **details}


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
