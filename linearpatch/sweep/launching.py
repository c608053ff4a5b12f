"""What every launcher is: it starts processes for requests and knows how each ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from linearpatch.sweep.request import Request


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        code: Its exit status, negative for a signal; None where it is not known.
        reason: In words, where it died or was never started.
        seconds: From its start to its end, where that is known.
    """

    code: int | None
    reason: str | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, code: int, seconds: float) -> Ending:
        """That of an exit status."""
        if code >= 0:
            return cls(code, seconds=seconds)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (the machine may have run out of memory)" if name == "SIGKILL" else ""
        return cls(code, f"its process was killed by {name}{hint}", seconds)


class Submit(Protocol):
    """Starts processes, or queues them."""

    def __call__(self, requests: Sequence[Request]) -> list[Future[Ending]]:
        """One future for each request."""


@dataclass(frozen=True)
class Launcher(ABC):
    """Runs the jobs of a sweep."""

    @property
    def at_a_time(self) -> int | None:
        """Jobs that run together; None where others decide."""
        return None

    @abstractmethod
    def opened(self) -> AbstractContextManager[Submit]:
        """A block in which jobs can be submitted; when it ends early, those that still run are stopped.

        Raises:
            ConfigError: the launcher's package is missing, or a setting is impossible.
        """

    @abstractmethod
    def describe(self) -> str:
        """Where jobs run and how many at a time, for people."""


def run_process(request: str, environment: Mapping[str, str] | None = None) -> Ending:
    """Run a request in a process of its own and wait for it; imports nothing heavy, for workers of other packages.

    Args:
        request: `Request.to_text()`.
        environment: More variables.
    """
    command = [sys.executable, "-m", "linearpatch.sweep.worker", request]
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    try:
        return Ending.of(process.wait(), time.monotonic() - began)
    except BaseException:  # this process is asked to stop
        process.terminate()
        process.wait()
        raise
