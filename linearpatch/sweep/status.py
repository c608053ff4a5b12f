"""The sweeps of a folder from outside: the state of every job, and how long the rest will take."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from linearpatch.errors import StorageError
from linearpatch.results.files import FILE_NAME
from linearpatch.results.state import STATES, RunState, state_of
from linearpatch.storage.leases import Lease
from linearpatch.sweep.manifest import FOLDER, Listed, leases_of, read_manifests
from linearpatch.sweep.tables import PARTS, duration
from linearpatch.text import printable, some_of

SERVED_SHOWN = 2
SHOWN = {"lost": "not running"}  # states in other words for people
UNFINISHED = ("failed", "interrupted", "lost")


@dataclass(frozen=True)
class Watched:
    """A job as it is now.

    Attributes:
        name: The run's id, or the shared step's name.
        part: `run`, or the kind of shared step.
        now: Its state.
        serves: Of a shared step: the runs that need it.
    """

    name: str
    part: str
    now: RunState
    serves: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What people call it: the run's id, or what a shared step does and for which runs."""
        if self.part == "run":
            return printable(self.name)
        what = PARTS.get(self.part, self.part)
        if not self.serves:  # listed by an earlier version
            return printable(f"{self.name} ({what})")
        return printable(f"{what} for {some_of(self.serves, SERVED_SHOWN)}")

    @property
    def seconds(self) -> float | None:
        """What the run took, or has taken so far."""
        if self.now.state == "running" and self.now.progress is not None:
            return time.time() - self.now.progress.since
        return sum(self.now.record.timings_s.values()) if self.now.record else None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens unless somebody starts it."""
        return self.now.state in ("completed", "failed", "interrupted", "lost")

    def is_superseded(self, completed: Collection[str]) -> bool:
        """Whether it is a shared step that a later sweep did in another way: the runs that need it are completed."""
        return (
            self.part != "run"
            and self.now.state not in ("completed", "running")
            and bool(self.serves)
            and set(self.serves) <= set(completed)
        )

    @property
    def is_open(self) -> bool:
        """Whether it is left to be done, though not because it failed."""
        return self.now.state in ("waiting", "interrupted", "lost")


@dataclass(frozen=True)
class Overview:
    """A folder as it is now.

    Attributes:
        jobs: The jobs of its sweeps, each once, however many sweeps list it, and runs that none lists.
        advice: For each sweep or run that isn't over and that no living process works on: how to resume it.
        is_over: Whether nothing more happens unless somebody starts it.
    """

    jobs: tuple[Watched, ...]
    advice: tuple[str, ...]
    is_over: bool

    @property
    def is_complete(self) -> bool:
        """Whether all that is there is completed, or on the way."""
        return not self.advice and not any(job.now.state in UNFINISHED for job in self.jobs if job.part == "run")


class Watch:
    """Successive looks at a folder. Whether a run on another machine is alive shows in its leases over time.

    Args:
        folder: Of sweeps, or of a run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leases: dict[Path, Lease] = {}
        self._silent: set[Path] = set()

    def look(self) -> Overview:
        """The folder as it is now. The first look takes seconds where leases look old: their owners may live.

        Raises:
            StorageError: there are neither runs nor a sweep.
        """
        overview = self._look()
        abandoned = [lease for lease in self._leases.values() if lease.path not in self._silent]
        abandoned = [lease for lease in abandoned if lease.seems_abandoned and not lease.was_refreshed]
        if not abandoned:
            return overview
        with ThreadPoolExecutor(len(abandoned)) as pool:
            alive = list(pool.map(Lease.is_alive, abandoned))
        self._silent |= {lease.path for lease, lives in zip(abandoned, alive, strict=True) if not lives}
        return self._look()

    def _look(self) -> Overview:
        manifests = read_manifests(self._folder)
        listed = {job.folder or job.name: job for manifest in manifests for job in manifest.jobs}
        jobs = {place: self._watched(job) for place, job in listed.items()}
        known = {(self._folder / job.folder).resolve() for job in listed.values()}
        is_run = (self._folder / FILE_NAME).exists()
        places = [self._folder] if is_run else sorted(path.parent for path in self._folder.glob(f"*/{FILE_NAME}"))
        alone = {
            place: Watched(place.resolve().name, "run", state_of(place, self._is_held))
            for place in places
            if place.resolve() not in known
        }
        if not (jobs or alone):
            below = some_of([str(place) for place in _folders_with_runs(self._folder)])
            raise StorageError(
                f"{self._folder} holds neither runs nor a sweep. Name the output_dir of a sweep, or of a run"
                + (f": {below}." if below else ".")
            )
        advice = [_advice(job.name, *_command_of(job)) for job in alone.values() if job.is_open]
        is_over = all(job.is_over for job in alone.values())
        advised: set[str] = set()
        for manifest in reversed(manifests):  # the newest that lists a run says how to resume it
            places_of = {job.folder or job.name for job in manifest.jobs}
            is_worked_on = any(self._is_held(lease) for lease in leases_of(self._folder, manifest))
            is_worked_on |= any(jobs[place].now.state == "running" for place in places_of)
            open_runs = {place for place in places_of if jobs[place].part == "run" and jobs[place].is_open}
            if is_worked_on:
                is_over = False
            elif open_runs - advised or manifest.trials_left:
                advice.append(_advice(f"sweep {manifest.label}", manifest.command, manifest.working_dir))
            advised |= places_of
        completed = {job.name for job in jobs.values() if job.part == "run" and job.now.state == "completed"}
        shown = [job for job in jobs.values() if not job.is_superseded(completed)]
        return Overview((*shown, *alone.values()), tuple(advice), is_over)

    def _watched(self, job: Listed) -> Watched:
        now = RunState("failed", reason=job.error) if job.error else state_of(self._folder / job.folder, self._is_held)
        return Watched(job.name, job.part, now, job.serves)

    def _is_held(self, path: Path) -> bool:
        lease = self._leases.setdefault(path, Lease(path))
        return lease.is_held() and (path not in self._silent or lease.was_refreshed)


def _folders_with_runs(folder: Path) -> list[Path]:
    """Folders inside one that hold a sweep or runs."""
    sweeps = {path.parent for path in folder.glob(f"*/{FOLDER}")}
    return sorted(sweeps | {path.parent.parent for path in folder.glob(f"*/*/{FILE_NAME}")})


def _command_of(run: Watched) -> tuple[str, str]:
    """What starts a run again, and where."""
    command = run.now.record.command if run.now.record else ""
    return command, run.now.progress.working_dir if run.now.progress else ""


def _advice(what: str, command: str, working_dir: str) -> str:
    """How to resume what no process works on, to be pasted into a shell."""
    try:
        words = [word for word in shlex.split(command) if word != "force=true"]  # what is done needn't be done again
    except ValueError:
        words = []
    if words[:1] != ["linearpatch"] or words[1:2] not in (["run"], ["frontier"]):
        # A run that Python began, or a record that something else wrote.
        return f"{what}: not running; resume it by repeating the call that started it"
    elsewhere = working_dir and working_dir != str(Path.cwd())
    first = f"cd {shlex.quote(working_dir)} && " if elsewhere else ""
    return printable(f"{what}: not running; resume with: {first}{shlex.join(words)}")


def status_table(folder: Path, jobs: Sequence[Watched]) -> Table:
    """One row for each job, and how many are in which state."""
    counts = {state: sum(job.now.state == state for job in jobs if job.part == "run") for state in STATES}
    summary = ", ".join(f"{count} {SHOWN.get(state, state)}" for state, count in counts.items() if count)
    left = time_left(jobs)
    typical = _typical(jobs)
    caption = f"about {duration(left)} left" if left is not None else None
    table = Table(title=f"{folder}: {summary}", caption=caption, title_justify="left", caption_justify="left")
    for column in ("job", "state", "at"):
        table.add_column(column)
    for column in ("progress", "time", "left"):
        table.add_column(column, justify="right")
    for job in jobs:
        if job.part != "run" and job.now.state == "completed":
            continue  # shared steps are shown while they matter
        seconds = job.seconds
        at, progress = _at(job)
        taken = duration(seconds) if seconds else ""
        state = SHOWN.get(job.now.state, job.now.state)
        table.add_row(escape(job.title), state, escape(at), progress, taken, _left(job, typical))
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
    if job.now.progress is None or job.now.state != "running":
        return (job.now.record.error or "" if job.now.record else job.now.reason), ""
    progress = job.now.progress
    return progress.what, f"{progress.done:g}/{progress.total:g}" if progress.total else ""


def _left(job: Watched, typical: float | None) -> str:
    if job.now.state != "running" or typical is None or job.part != "run":
        return ""
    return duration(max(typical - (job.seconds or 0), 0))
