"""What every tracker is: it follows a run and shows its record elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from linearpatch.registry import component
from linearpatch.results.record import Record


@dataclass(frozen=True)
class Tracker(ABC):
    """Follows runs."""

    @abstractmethod
    def follow(self, record: Record, folder: Path) -> AbstractContextManager[None]:
        """A block around the run; when it ends the record holds all there is to show."""


@component("tracker", "none")
@dataclass(frozen=True)
class NoTracker(Tracker):
    """Nothing beside the run's own folder."""

    def follow(self, record: Record, folder: Path) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()
