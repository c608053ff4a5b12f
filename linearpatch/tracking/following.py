"""Several trackers follow one run, and none of them can harm it or another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from linearpatch.errors import LinearPatchError
from linearpatch.results.record import Record
from linearpatch.tracking.tracker import Curve, Tracker

log = logging.getLogger(__name__)


@contextmanager
def following(trackers: Mapping[str, Tracker], record: Record, folder: Path) -> Iterator[Callable[[], Curve]]:
    """Let trackers follow what happens in a block. What one of them raises is logged.

    Yields a function that starts them and returns what takes points of curves. They are ended with the block: when it
    contains all that writes the record, a tracker that hangs or crashes the process at its end costs no result.

    Args:
        trackers: By name.
        record: Of the run.
        folder: Of the run.
    """
    with ExitStack() as ends:

        def start() -> Curve:
            curves: dict[str, Curve] = {}
            for name, tracker in trackers.items():
                try:
                    context = tracker.follow(record, folder)
                    curves[name] = context.__enter__()
                except Exception as error:  # each tool has kinds of its own
                    _warn(name, "can't be started, so this run isn't tracked", error, folder)
                else:
                    ends.push(partial(_end, name, context, folder))

            def add(point: Mapping[str, float]) -> None:
                for name, curve in list(curves.items()):
                    try:
                        curve(point)
                    except Exception as error:
                        _warn(name, "failed on a curve point and gets no more", error, folder)
                        del curves[name]

            return add

        yield start


def _end(
    name: str,
    context: AbstractContextManager[Curve],
    folder: Path,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool:
    """End one tracker, which learns of the exception that ended the run. Returns that nobody swallows it."""
    try:
        context.__exit__(kind, error, traceback)
    except Exception as failure:
        if failure is not error:
            _warn(name, "failed at the end, so this run may be incomplete there", failure, folder)
    return False


def _warn(name: str, what: str, error: Exception, folder: Path) -> None:
    reason = " ".join(str(error).split())
    shown = reason if isinstance(error, LinearPatchError) else f"{type(error).__name__}: {reason}"
    log.warning("tracker=%s %s: %s The results are in %s.", name, what, shown.rstrip(".") + ".", folder)
    log.debug("tracker=%s", name, exc_info=error)
