"""The report as Markdown: tables, figures, how things were measured, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from linearpatch.report.figures.style import Drawing
from linearpatch.report.markdown import escape, markdown_table
from linearpatch.report.reading import ReadRuns
from linearpatch.report.tables import Table
from linearpatch.text import counted

MOST_LINES = 60  # of a table in the document; its own file holds them all


def document(title: str, selected: ReadRuns, tables: Sequence[Table], drawings: Sequence[Drawing]) -> str:
    """`report.md`; tables and figures lie beside it."""
    models = list(dict.fromkeys(run.model.name for run in selected.runs))
    parts = [
        f"# {escape(title)}\n",
        f"{counted(len(selected.runs), 'run')} of {', '.join(escape(model) for model in models) or 'no model'}. "
        "[report.html](report.html) shows them all, to filter, sort and plot; `tables/` holds each table as Markdown, "
        "LaTeX and CSV, and every number in `measurements.csv`; `figures/` holds each figure as PNG and PDF.\n",
    ]
    for table in tables:
        parts += [f"## {escape(table.title)}\n", _table(table)]
    if drawings:
        parts.append("## Figures\n")
        parts += [
            f"![{escape(drawing.name)}](figures/{drawing.name}.png)\n\n{escape(drawing.caption)}\n"
            for drawing in drawings
        ]
    if selected.failures:
        parts.append("## Left out\n")
        lines = [
            f"| {' | '.join(map(escape, (left_out.run_id, left_out.status, left_out.reason, str(left_out.folder))))} |"
            for left_out in selected.failures
        ]
        parts.append("\n".join(["| run | status | reason | folder |", "| --- | --- | --- | --- |", *lines]) + "\n")
    if selected.remarks:
        parts += ["## Remarks\n", "\n".join(f"- {escape(remark)}" for remark in selected.remarks) + "\n"]
    return "\n".join(parts)


def _table(table: Table) -> str:
    """A table; of a long one a link."""
    if len(table.lines) <= MOST_LINES:
        return markdown_table(table)
    return f"{len(table.lines)} lines: [tables/{table.name}.md](tables/{table.name}.md)\n"
