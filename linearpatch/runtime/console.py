"""Where text leaves the program: terminals and logs get no control characters but our own."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from linearpatch.text import printable


class PlainConsole(Console):
    """A console that shows control characters in what it prints as escapes; colours and bars stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every text that is printed passes here, before it is laid out in lines and cells."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class PlainFormatter(logging.Formatter):
    """Formats lines of a log file."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, with the traceback where there is one."""
        return printable(super().format(record))
