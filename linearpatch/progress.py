"""Progress bars: one at a time, on stderr, gone when done; silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Bars and log lines share one console, so that they don't overwrite each other. Where there is no terminal
# to ask for its width (a file, CI), lines may be as long as a wide one's.
WIDTH_OF_FILES = 140
console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH_OF_FILES)


@contextmanager
def steps(description: str, total: float) -> Iterator[Callable[..., None]]:
    """Show a bar while a block runs; the block calls what it is given after each step, or with a number of steps."""
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count=1: progress.advance(task, count)
