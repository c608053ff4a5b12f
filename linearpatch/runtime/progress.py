"""Progress bars: one at a time, on stderr, removed when done; silent where stderr is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from linearpatch.runtime.console import PlainConsole

# Bars and log lines share one console, so that they don't overwrite each other. Where there is no terminal
# to ask for its width (a file, CI), lines may be as long as a wide one's.
WIDTH_OF_FILES = 140
console = PlainConsole(stderr=True, width=None if sys.stderr.isatty() else WIDTH_OF_FILES)
out = PlainConsole(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)  # what a command is asked for goes to stdout


# Called with progress: what is being done, how much of it is done, how much there is (0: not known).
Watcher = Callable[[str, float, float], None]
_watchers: list[Watcher] = []


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """While open, `by` is called with all progress in this process."""
    _watchers.append(by)
    try:
        yield
    finally:
        _watchers.remove(by)


def notify(what: str, done: float = 0, total: float = 0) -> None:
    """Pass progress on to whoever watches this process."""
    for watcher in _watchers:
        watcher(what, done, total)


@contextmanager
def steps(description: str, total: float) -> Iterator[Callable[..., None]]:
    """Show a bar while a block runs; the block calls what it is given after each step, or with a number of steps."""
    with _bar() as progress:
        task = progress.add_task(description, total=total)
        notify(description, 0, total)

        def advance(count: float = 1) -> None:
            progress.advance(task, count)
            notify(description, progress.tasks[0].completed, total)

        yield advance


@contextmanager
def training_bar(description: str, total: int, done: int) -> Iterator[Callable[[int, float, float, float], None]]:
    """The same with what a training is at: the block reports steps done, loss, learning rate and tokens a second."""
    with _bar(TextColumn("{task.fields[state]}")) as progress:
        task = progress.add_task(description, total=total, completed=done, state="")

        def show(step: int, loss: float, learning_rate: float, tokens_per_s: float) -> None:
            state = f"loss {loss:.4f} · lr {learning_rate:.2g} · {tokens_per_s:,.0f} tokens/s"
            progress.update(task, completed=step, state=state)
            notify(description, step, total)

        yield show


def _bar(*more: ProgressColumn) -> Progress:
    shown = console.is_terminal and os.environ.get("RANK", "0") == "0"  # one process shows what all are doing
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(*columns, *more, console=console, transient=True, disable=not shown)
