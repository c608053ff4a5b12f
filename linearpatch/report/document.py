"""The report as Markdown: tables, figures, how things were measured, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from linearpatch.report.figures.style import Drawing
from linearpatch.report.markdown import escape, markdown_table
from linearpatch.report.reading import Found
from linearpatch.report.tables import Table
from linearpatch.text import counted

MOST_LINES = 60  # of a table in the document; its own file holds them all


def document(title: str, found: Found, tables: Sequence[Table], drawings: Sequence[Drawing]) -> str:
    """`report.md`; tables and figures lie beside it."""
    models = list(dict.fromkeys(run.model.name for run in found.runs))
    parts = [
        f"# {escape(title)}\n",
        f"{counted(len(found.runs), 'run')} of {', '.join(escape(model) for model in models) or 'no model'}. "
        "[report.html](report.html) shows them all, to filter, sort and plot; `tables/` holds each table as Markdown, "
        "LaTeX and CSV, and every number in `measurements.csv`; `figures/` holds each figure as PNG and PDF.\n",
    ]
    for table in tables:
        parts += [f"## {escape(table.title)}\n", _table(table)]
    if drawings:
        parts.append("## Figures\n")
        parts += [f"![{escape(one.name)}](figures/{one.name}.png)\n\n{escape(one.caption)}\n" for one in drawings]
    if found.failures:
        parts.append("## Left out\n")
        lines = [
            f"| {escape(one.run_id)} | {escape(one.status)} | {escape(one.reason)} | {escape(str(one.folder))} |"
            for one in found.failures
        ]
        parts.append("\n".join(["| run | status | reason | folder |", "| --- | --- | --- | --- |", *lines]) + "\n")
    if found.remarks:
        parts += ["## Remarks\n", "\n".join(f"- {escape(remark)}" for remark in found.remarks) + "\n"]
    return "\n".join(parts)


def _table(table: Table) -> str:
    """A table; of a long one a link."""
    if len(table.lines) <= MOST_LINES:
        return markdown_table(table)
    return f"{len(table.lines)} lines: [tables/{table.name}.md](tables/{table.name}.md)\n"
