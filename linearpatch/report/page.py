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
from linearpatch.report.differences import Differences
from linearpatch.report.layouts import DEFINITIONS, cost_columns, headline_columns, metric_title, speed_columns
from linearpatch.report.matrices import LEVEL
from linearpatch.report.quantities import Dense, Entry, Value, all_metrics, metric, retained
from linearpatch.report.reading import Found, Run
from linearpatch.report.tables import Column, Table, labels_of
from linearpatch.results.units import unit_of
from linearpatch.text import printable, printable_values

SCRIPTS = ("page.js", "table.js", "plots.js", "matrix.js", "details.js", "start.js")
SLOT = re.compile(r"<!--slot:(\w+)-->")


def write_page(
    title: str,
    entries: Sequence[Entry],
    found: Found,
    tables: Sequence[Table],
    differences: Sequence[Differences],
    images: Sequence[Image],
) -> str:
    """The page as HTML, with styles, scripts, plotly and all data inside.

    Args:
        title: Its head.
        entries: Lines of the table, points of the plots.
        found: The runs that details show, and those left out.
        tables: Those of the report.
        differences: Between any two entries.
        images: The figures of the report.
    """
    shown = choices(entries)
    columns = [choice.column for choice in shown]
    runs = found.runs
    data = {
        "title": title,
        "columns": [_described(choice) for choice in shown],
        **_lines(entries, columns, {run.record.run_id: at for at, run in enumerate(runs)}),
        **_differences(differences),
        "tables": [_table(table) for table in tables],
        "failures": [asdict(failure) | {"folder": str(failure.folder)} for failure in found.failures],
        "remarks": list(found.remarks),
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
        "images": script_json([asdict(image) for image in images]),
        "plotly": scripts[0],
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts[1:]),
    }
    return SLOT.sub(lambda slot: slots[slot[1]], (web / "page.html").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Image:
    """A figure on the page.

    Attributes:
        name: Of its file.
        caption: What it shows.
        png: The picture, in base64.
        width: In pixels of the page …
        height: … and its height.
    """

    name: str
    caption: str
    png: str
    width: int
    height: int


@dataclass(frozen=True)
class Choice:
    """A column that the page can show.

    Attributes:
        column: The column.
        kind: Which plot it is for: `perplexity`, `retained`, `cost`, or none.
        shown: Whether the table shows it from the start.
    """

    column: Column
    kind: str = ""
    shown: bool = False


def choices(entries: Sequence[Entry]) -> list[Choice]:
    """All that can be shown: what stands for each evaluation first, then every other metric."""
    rows = [row for entry in entries for row in entry.rows]
    known = all_metrics(rows)
    found = [Choice(column, _kind(column), shown=True) for column in headline_columns(known, Dense.among(rows))]
    found += [Choice(column, "cost", column.key == "parameters") for column in cost_columns(rows)]
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


def _differences(found: Sequence[Differences]) -> dict[str, Any]:
    """Pairs of lines with all that is known of each; words that many share stand once."""
    words: dict[str, int] = {}

    def number(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    content = [
        {
            "model": one.model, "metric": one.metric, "unit": "%" if one.logarithm else "points",
            "title": f"{metric_title(one.metric)}, {one.model}",
            "pairs": [
                [
                    pair.first, pair.second, number(pair.value), number(pair.low), number(pair.high),
                    number(pair.adjusted), words.setdefault(pair.basis, len(words)),
                    words.setdefault(pair.reason, len(words)),
                ]
                for pair in one.pairs.values()
            ],
        }
        for one in found
    ]  # fmt: skip
    return {"differences": content, "words": list(words), "level": LEVEL}


def script_json(content: Any) -> str:
    r"""JSON that may stand in a script element: nothing in it ends the element or begins a comment.

    >>> script_json({"a": "</script><!--"})
    '{"a":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(printable_values(content), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _kind(column: Column) -> str:
    if column.key.endswith("/retained"):
        return "retained"
    return "perplexity" if column.key.startswith("ppl/") and not column.derived else ""


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
                "settings": variant.settings_text, "name": entry.name,
                "seeds": sorted({row.seed for row in entry.rows}),
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
    elif value.reading.stderr is not None:
        found["e"] = value.reading.stderr * scale
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
