"""Tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from linearpatch.report.tables import Cell, Table
from linearpatch.text import printable

# What would be read as more than text: no links, no HTML, no ends of cells. Between letters, _ is just that.
SPECIAL = re.compile(r"([\\`*<|~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^#)")


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is.

    >>> print(escape("a|b <img> x_y"))
    a\|b \<img> x_y
    """
    return SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))


def markdown_table(table: Table) -> str:
    """A table with its notes; numbers and sizes to the right, the best in bold."""
    heads = [escape(head) for head in (*table.heads, *table.columns)]
    rule = ["---:" if right else "---" for right in table.are_right]
    lines = [_row(heads), _row(rule)]
    for line in table.lines:
        lines.append(_row([*(escape(label) for label in line.labels), *(_cell(cell) for cell in line.cells)]))
    notes = [f"- {escape(note)}" for note in table.notes]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({cell.mark})" if cell.mark else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
