"""What every tracker is: it follows a run and shows its record elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from linearpatch.registry import component
from linearpatch.results.record import Record

# Takes a point of some curves: values by name, such as `distill/loss`, one of them the `distill/step`.
Curve = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Tracker(ABC):
    """Follows runs."""

    @abstractmethod
    def follow(self, record: Record, folder: Path) -> AbstractContextManager[Curve]:
        """A block around the run; when it ends the record holds all there is to show.

        What it yields is called with points of curves during the run.
        """


@component("tracker", "none")
@dataclass(frozen=True)
class NoTracker(Tracker):
    """Nothing beside the run's own folder."""

    def follow(self, record: Record, folder: Path) -> AbstractContextManager[Curve]:
        """Do nothing."""
        return nullcontext(lambda point: None)
