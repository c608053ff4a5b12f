"""One page to explore all runs: it works from disk, without a network, and takes nothing in records for HTML."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from linearpatch.report.compare import letters
from linearpatch.report.layouts import DEFINITIONS, headline_columns, perplexity_columns, speed_columns
from linearpatch.report.quantities import Dense, Entry, Value, all_metrics, metric, retained
from linearpatch.report.reading import Failure, Run
from linearpatch.report.tables import Column, Table, labels_of
from linearpatch.results.units import unit_of
from linearpatch.text import printable, printable_values

SCRIPTS = ("page.js", "table.js", "plots.js", "details.js", "start.js")
SLOT = re.compile(r"<!--slot:(\w+)-->")


def write_page(
    title: str,
    entries: Sequence[Entry],
    runs: Sequence[Run],
    tables: Sequence[Table],
    failures: Sequence[Failure],
    remarks: Sequence[str],
) -> str:
    """The page as HTML, with styles, scripts, plotly and all data inside.

    Args:
        title: Its head.
        entries: Lines of the table, points of the plots.
        runs: What details show.
        tables: Those of the report.
        failures: Runs that are left out.
        remarks: What readers should know.
    """
    shown = choices(entries)
    columns = [choice.column for choice in shown]
    data = {
        "title": title,
        "columns": [_described(choice) for choice in shown],
        **_lines(entries, columns, {run.record.run_id: at for at, run in enumerate(runs)}),
        "tables": [_table(table) for table in tables],
        "failures": [asdict(failure) | {"folder": str(failure.folder)} for failure in failures],
        "remarks": list(remarks),
    }
    web = files("linearpatch.report") / "web"
    scripts = [get_plotlyjs(), *((web / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    slots = {
        "title": html.escape(printable(title)),
        "hashes": " ".join(_hash(script) for script in scripts),
        "style": (web / "page.css").read_text(encoding="utf-8"),
        "data": script_json(data),
        "runs": script_json([_details(run) for run in runs]),
        "plotly": scripts[0],
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts[1:]),
    }
    return SLOT.sub(lambda slot: slots[slot[1]], (web / "page.html").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Choice:
    """A column that the page can show.

    Attributes:
        column: The column.
        kind: Which plot it is for: `perplexity`, `retained`, `speed`, or none.
        shown: Whether the table shows it from the start.
    """

    column: Column
    kind: str = ""
    shown: bool = False


def choices(entries: Sequence[Entry]) -> list[Choice]:
    """All that can be shown: what stands for each evaluation first, then every other metric."""
    rows = [row for entry in entries for row in entry.rows]
    known, dense = all_metrics(rows), Dense.among(rows)
    found = [Choice(column, _kind(column.key), shown=True) for column in headline_columns(known, dense)]
    times = (column for column in perplexity_columns(known, dense=dense) if column.derived)
    found += [Choice(replace(one, title=f"{one.key.removesuffix('_times_dense')} × dense")) for one in times]
    found += [Choice(replace(one, title=f"speed {one.title}")) for one in speed_columns("speed", known)]
    kept = dict.fromkeys(name for row in rows for averages in row.retained.values() for name in averages)
    found += [
        Choice(Column(f"{name}/{key}", f"{name} retained, {words}", retained(name, key), "share"), "retained")
        for name in kept
        for key, words in DEFINITIONS.items()
    ]
    found += [Choice(Column(name, name, metric(name), measure.unit)) for name, measure in known.items()]
    first: dict[str, Choice] = {}
    for choice in found:
        first.setdefault(choice.column.key, choice)
    return list(first.values())


def script_json(content: Any) -> str:
    r"""JSON that may stand in a script element: nothing in it ends the element or begins a comment.

    >>> script_json({"a": "</script><!--"})
    '{"a":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(printable_values(content), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _kind(key: str) -> str:
    if key.startswith("ppl/"):
        return "perplexity"
    if key.startswith("speed/"):
        return "speed"
    return "retained" if key.endswith("/retained") else ""


def _described(choice: Choice) -> dict[str, Any]:
    column = choice.column
    digits = unit_of(column.unit).digits
    return {"key": column.key, "title": column.title, "digits": digits, "shown": choice.shown, "kind": choice.kind}


def _lines(entries: Sequence[Entry], columns: Sequence[Column], run_index: dict[str, int]) -> dict[str, Any]:
    """Lines and how their numbers were measured."""
    found = [[entry.value(column.quantity) for column in columns] for entry in entries]
    keys = [
        [(entry.variant.model, _key(values[at])) for entry, values in zip(entries, found, strict=True)]
        for at in range(len(columns))
    ]
    marks = [letters([one]) for one in keys]
    protocols: dict[str, int] = {}
    lines = []
    for entry, values in zip(entries, found, strict=True):
        variant, labels = entry.variant, labels_of(entry.variant)
        lines.append(
            {
                "model": variant.model, "numLayers": variant.num_layers, "n": variant.num_removed,
                "stage": variant.stage, "pruner": labels[2], "patch": variant.patch, "distill": variant.distill,
                "settings": variant.settings_text, "seeds": sorted({row.seed for row in entry.rows}),
                "parameters": entry.rows[0].num_parameters,
                "removed": [sorted(row.removed) for row in entry.rows],
                "runs": sorted({run_index[run] for row in entry.rows for run in row.runs if run in run_index}),
                "values": {
                    str(at): _number(value, columns[at], protocols, marks[at])
                    for at, value in enumerate(values)
                    if value is not None
                },
            }
        )  # fmt: skip
    return {"lines": lines, "protocols": list(protocols)}


def _number(value: Value, column: Column, protocols: dict[str, int], marks: dict[str, str]) -> dict[str, Any]:
    """A number in the unit that is shown, with its interval, protocol and letter."""
    scale = unit_of(column.unit).factor
    key = _key(value)
    found: dict[str, Any] = {"v": value.mean * scale, "p": protocols.setdefault(key, len(protocols))}
    if value.spread is not None:
        found["s"] = value.spread * scale
    if value.interval:
        found["i"] = [end * scale for end in value.interval]
    if key in marks:
        found["m"] = marks[key]
    return found


def _key(value: Value | None) -> str:
    return f"{value.reading.protocol}, {value.reading.data}" if value else ""


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
