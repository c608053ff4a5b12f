"""One page to explore all runs: it works from disk, without a network, and takes nothing in records for HTML."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from linearpatch.report.layouts import DEFINITIONS, TASKS, headline_columns, perplexity_columns, speed_columns
from linearpatch.report.quantities import Dense, Entry, Value, all_metrics, metric, retained
from linearpatch.report.reading import Failure, Run
from linearpatch.report.tables import SHOWN, Column, Table, labels_of, letters

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
    columns = page_columns(entries)
    data = {
        "title": title,
        "columns": [_described(column, columns, entries) for column in columns],
        **_lines(entries, columns, {run.record.run_id: at for at, run in enumerate(runs)}),
        "tables": [_table(table) for table in tables],
        "failures": [{"run": f.run_id, "folder": str(f.folder), "status": f.status, "reason": f.reason} for f in failures],
        "remarks": list(remarks),
    }
    web = files("linearpatch.report") / "web"
    scripts = [get_plotlyjs(), *((web / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    slots = {
        "title": html.escape(title),
        "hashes": " ".join(_hash(script) for script in scripts),
        "style": (web / "page.css").read_text(encoding="utf-8"),
        "data": script_json(data),
        "runs": script_json([_details(run) for run in runs]),
        "plotly": f"<script>{scripts[0]}</script>",
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts[1:]),
    }
    return SLOT.sub(lambda slot: slots[slot[1]], (web / "page.html").read_text(encoding="utf-8"))


def page_columns(entries: Sequence[Entry]) -> list[Column]:
    """All that can be shown: what stands for each evaluation first, then every other metric."""
    rows = [row for entry in entries for row in entry.rows]
    known, dense = all_metrics(rows), Dense.among(rows)
    columns = headline_columns(known, dense)
    columns += [column for column in perplexity_columns(known, dense=dense) if column.derived]
    columns += speed_columns("speed", known)
    kept = dict.fromkeys(name for row in rows for averages in row.retained.values() for name in averages)
    columns += [
        Column(f"{name}/{definition}", f"{name} retained, {words}", retained(name, definition), "share", "higher")
        for name in kept
        for definition, words in DEFINITIONS.items()
    ]
    columns += [Column.of(name, name, metric(name), measure.unit) for name, measure in known.items()]
    return list({column.key: column for column in reversed(columns)}.values())[::-1]


def script_json(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment.

    >>> script_json({"a": "</script><!--"})
    '{"a":"\\\\u003c/script>\\\\u003c!--"}'
    """
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str).replace(
        "<", "\\u003c"
    )


def _described(column: Column, columns: Sequence[Column], entries: Sequence[Entry]) -> dict[str, Any]:
    rows = [row for entry in entries for row in entry.rows]
    headline = {one.key for one in headline_columns(all_metrics(rows), Dense.among(rows))}
    title = column.title if column.key.startswith("speed/") or column.key not in headline else column.title
    task = column.key.split("/")
    if len(task) == 3 and task[1] in TASKS:
        title = f"{task[0]} {TASKS[task[1]]} {task[2]}"
    digits = SHOWN.get(column.unit, (1, 2))[1]
    kind = "perplexity" if column.key.startswith("ppl/") and not column.derived else "retained" if (
        "retained" in column.title or column.title.endswith("RP")
    ) else "speed" if column.key.endswith("_per_s") else ""
    return {"key": column.key, "title": title, "digits": digits, "unit": column.unit, "shown": column.key in headline, "kind": kind}


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
    scale = SHOWN.get(column.unit, (1, 2))[0]
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
        "numbers": [False] * len(table.heads) + table.are_numbers,
        "groups": [
            [[*line.labels, *({"t": c.text, "b": c.best, "m": c.mark} for c in line.cells)] for line in group]
            for group in table.groups
        ],
        "notes": list(table.notes),
    }


def _details(run: Run) -> dict[str, Any]:
    """All that a record holds but its numbers, which the table shows."""
    content = asdict(run.record)
    left_out = ("metrics", "retained", "answered", "schema_version")
    details = {name: value for name, value in content.items() if name not in left_out}
    details["pruning"] = {name: value for name, value in details["pruning"].items() if name != "scores"}
    if details["distillation"]:
        details["distillation"] = {name: v for name, v in details["distillation"].items() if name != "curve"}
    return {"folder": str(run.folder), **details}


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
