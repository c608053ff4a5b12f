"""A request to stop, by Ctrl-C or by a cluster's SIGTERM, that waits until work can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """Raised where a request to stop is obeyed."""


@contextmanager
def terminable() -> Iterator[None]:
    """While open, SIGTERM ends the work as Ctrl-C does, so that it can say how far it came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Terminated(f"stopped by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """While open, the first SIGINT or SIGTERM is only noted; a second one of its kind has its usual effect.

    Yields the question whether there was one: the answer is its name, or None. Outside the main thread, where
    Python handles no signals, the answer is always None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[str] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])
        log.info("%s: stopping after this step (send it again to stop immediately)", received[-1])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])
