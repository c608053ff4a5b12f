"""The sweeps of a folder from outside: the state of every job, and how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from linearpatch.errors import StorageError
from linearpatch.results.record import FILE_NAME
from linearpatch.results.state import STATES, RunState, state_of
from linearpatch.sweep.manifest import read_manifests
from linearpatch.sweep.tables import PARTS, duration


@dataclass(frozen=True)
class Watched:
    """A job as it is now.

    Attributes:
        name: The run's id, or the shared step's name.
        part: `run`, or the kind of shared step.
        now: Its state.
    """

    name: str
    part: str
    now: RunState

    @property
    def seconds(self) -> float | None:
        """What the run took, or has taken so far."""
        if self.now.progress is not None:
            return time.time() - self.now.progress.since
        return sum(self.now.record.timings_s.values()) if self.now.record else None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens unless somebody starts it."""
        return self.now.state in ("completed", "failed", "interrupted", "lost")


def watch(folder: Path) -> list[Watched]:
    """The jobs of the sweeps in a folder, each once, however many sweeps list it; runs there that none lists.

    Raises:
        StorageError: there is neither.
    """
    listed = {job.folder or job.name: job for manifest in read_manifests(folder) for job in manifest.jobs}
    jobs = [
        Watched(job.name, job.part, RunState("failed") if job.error else state_of(folder / job.folder))
        for job in listed.values()
    ]
    known = {(folder / job.folder).resolve() for job in listed.values()}
    places = (
        [folder] if (folder / FILE_NAME).exists() else sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    )
    jobs += [Watched(place.name, "run", state_of(place)) for place in places if place.resolve() not in known]
    if not jobs:
        raise StorageError(f"{folder} holds neither runs nor a sweep. Name the output_dir of a sweep, or of a run.")
    return jobs


def status_table(folder: Path, jobs: Sequence[Watched]) -> Table:
    """One row for each job, and how many are in which state."""
    counts = {state: sum(job.now.state == state for job in jobs if job.part == "run") for state in STATES}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    left = time_left(jobs)
    typical = _typical(jobs)
    caption = f"about {duration(left)} left" if left is not None else None
    table = Table(title=f"{folder}: {summary}", caption=caption, title_justify="left", caption_justify="left")
    for column in ("job", "state", "at"):
        table.add_column(column)
    for column in ("progress", "time", "left"):
        table.add_column(column, justify="right")
    for job in jobs:
        if job.part != "run" and job.is_over:
            continue  # shared steps are shown while they matter
        name = job.name if job.part == "run" else f"{job.name} ({PARTS.get(job.part, job.part)})"
        seconds = job.seconds
        at, progress = _at(job)
        taken = duration(seconds) if seconds else ""
        table.add_row(escape(name), job.now.state, escape(at), progress, taken, _left(job, typical))
    return table


def time_left(jobs: Sequence[Watched]) -> float | None:
    """Seconds until all runs are over, if those to come take as long as those that are done; None: not known."""
    runs = [job for job in jobs if job.part == "run"]
    waiting = sum(job.now.state == "waiting" for job in runs)
    typical = _typical(jobs)
    running = [job for job in runs if job.now.state == "running"]
    if typical is None or not (waiting or running):
        return None
    begun = sum(max(typical - (job.seconds or 0), 0) for job in running)
    return (waiting * typical + begun) / max(len(running), 1)


def _typical(jobs: Sequence[Watched]) -> float | None:
    times = [job.seconds for job in jobs if job.part == "run" and job.now.state == "completed"]
    known = [seconds for seconds in times if seconds]
    return statistics.median(known) if known else None


def _at(job: Watched) -> tuple[str, str]:
    """What a job is at, and how far."""
    if job.now.progress is None:
        return (job.now.record.error or "" if job.now.record else job.now.reason), ""
    progress = job.now.progress
    return progress.what, f"{progress.done:g}/{progress.total:g}" if progress.total else ""


def _left(job: Watched, typical: float | None) -> str:
    if job.now.state != "running" or typical is None or job.part != "run":
        return ""
    return duration(max(typical - (job.seconds or 0), 0))
