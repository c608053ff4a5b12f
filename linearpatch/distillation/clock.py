"""The time that training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_INTERVAL_S = 60  # between two lines in the log, at most
TRIALS = 3  # how often a step is timed


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """The shortest time of some repetitions."""
    found = []
    for _ in range(times):
        started = time.monotonic()
        work()
        found.append(time.monotonic() - started)
    return min(found)


class Clock:
    """Speed of training, and when its state is to be saved next."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        self._minutes, self._steps = minutes, steps
        self._began = self._started = self._saved = self._logged_at = time.monotonic()
        self._tokens = self._since = 0

    def tick(self, tokens: int) -> None:
        """A step is done."""
        self._tokens += tokens
        self._since += 1

    @property
    def tokens_per_s(self) -> float:
        """Since training began or resumed, validation left out."""
        return self._tokens / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds(self) -> float:
        """Since training began or resumed, validation included."""
        return time.monotonic() - self._began

    def log_is_due(self) -> bool:
        """Whether it is time for another line in the log."""
        return time.monotonic() - self._logged_at > LOG_INTERVAL_S

    def reported(self) -> None:
        """A line was written."""
        self._logged_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether to save now."""
        minutes = (time.monotonic() - self._saved) / 60
        return (self._minutes is not None and minutes >= self._minutes) or (
            self._steps is not None and self._since >= self._steps
        )

    def saved(self) -> None:
        """It was saved."""
        self._saved, self._since = time.monotonic(), 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time doesn't count."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began
