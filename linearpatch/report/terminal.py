"""Tables of the report as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table as RichTable

from linearpatch.report.reading import Failure
from linearpatch.report.tables import Table
from linearpatch.text import counted

MOST_LINES = 40


def rich_table(table: Table, whole: str | None = None) -> RichTable:
    """A table with its notes.

    Args:
        table: The table.
        whole: What has all of it, so that of a long one the first lines will do; None: all lines.
    """
    shown = RichTable(title=escape(table.title), title_justify="left", caption_justify="left")
    for head, right in zip((*table.heads, *table.columns), table.are_right, strict=True):
        shown.add_column(escape(head), justify="right" if right else "left")
    most = len(table.lines) if whole is None else MOST_LINES
    left = most
    for group in table.groups:
        for line in group[:left]:
            cells = [f"[bold]{escape(c.text)}[/bold]" if c.best else escape(c.text) for c in line.cells]
            marked = [f"{text} ({c.mark})" if c.mark else text for text, c in zip(cells, line.cells, strict=True)]
            shown.add_row(*(escape(label) for label in line.labels), *marked)
        left -= min(left, len(group))
        shown.add_section()
    rest = len(table.lines) - most
    more = [f"… and {counted(rest, 'line')} more: {whole}"] if rest > 0 else []
    shown.caption = escape("\n".join([*more, *table.notes])) or None
    return shown


def failures_table(failures: Sequence[Failure]) -> RichTable:
    """Runs that were left out, with the reasons."""
    table = RichTable("run", "status", "reason", title="Left out", title_justify="left")
    for failure in failures:
        table.add_row(escape(failure.run_id), escape(failure.status), escape(failure.reason))
    return table
