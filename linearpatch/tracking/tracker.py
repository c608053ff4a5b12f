"""What every tracker is: it follows a run and shows its record elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError
from linearpatch.registry import component
from linearpatch.results.record import Record

# Takes a point of some curves: values by name, such as `distill/loss`, one of them the `distill/step`.
Curve = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Tracker(ABC):
    """Follows runs."""

    @abstractmethod
    def follow(self, record: Record, folder: Path) -> AbstractContextManager[Curve]:
        """A block around the run; when it ends, the record is complete and on disk.

        What it yields is called with points of curves during the run. Whatever it raises is logged, and stops neither
        the run nor other trackers.

        Args:
            record: Of the run; its sections are filled while the run goes through its steps.
            folder: Of the run, with `result.json` and what lies beside it.
        """


@component("tracker", "none")
@dataclass(frozen=True)
class NoTracker(Tracker):
    """Nothing beside the run's own folder."""

    def follow(self, record: Record, folder: Path) -> AbstractContextManager[Curve]:
        """Do nothing."""
        return nullcontext(lambda point: None)


def require_package(name: str, *, needed_by: str, install: str) -> None:
    """Reject a choice whose package is missing, without importing it.

    Args:
        name: Of the package, as it is imported.
        needed_by: The choice, such as `tracker=mlflow`.
        install: The command that installs it.

    Raises:
        ConfigError: it isn't installed.
    """
    if find_spec(name) is None:
        raise ConfigError(f"{needed_by} needs the package {name}. Run: {install} — or leave {needed_by} out.")


def check_trackers(trackers: Mapping[str, Any]) -> None:
    """Reject `none` beside other trackers, and settings of a tracker that aren't below its name.

    Raises:
        ConfigError: a YAML of the user's sets them as if a run had one tracker, or `none` isn't alone.
    """
    for name, chosen in trackers.items():
        if not isinstance(chosen, Tracker | Mapping):
            raise ConfigError(
                f"tracker.{name} is {chosen!r}, a setting without its tracker's name. Write tracker.NAME.{name}; the "
                "YAML of a tracker of your own begins with the line `# @package tracker.NAME`."
            )
    names = [name for name, chosen in trackers.items() if isinstance(chosen, Tracker)]
    if "none" in names and len(names) > 1:
        others = [name for name in names if name != "none"]
        raise ConfigError(
            f"tracker=[{','.join(names)}] combines none with {', '.join(others)}. Leave none out, or use tracker=none."
        )
