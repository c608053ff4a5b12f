"""How far a run is, seen from outside: a small file that it renews, and what follows from it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from linearpatch.errors import StorageError
from linearpatch.results.files import FILE_NAME, read_record
from linearpatch.results.record import Record
from linearpatch.runtime.progress import watched
from linearpatch.storage.files import make_folder, write_atomically
from linearpatch.storage.leases import exclusive, is_held
from linearpatch.storage.temporary import remove_leftovers, temporaries

PROGRESS_NAME = "progress.json"
LEASE_NAME = ".lease"
EVERY_S = 1.0

STATES = ("waiting", "running", "completed", "failed", "interrupted", "lost")


@dataclass(frozen=True)
class Progress:
    """What a run is at.

    Attributes:
        what: Its step, or what a bar shows.
        done: Parts of it that are done …
        total: … of so many; 0 where that isn't known.
        since: When the run began, in seconds since 1970.
        updated: When this was written.
        process: Its process' number …
        machine: … on which machine …
        working_dir: … and where it was started.
    """

    what: str
    done: float
    total: float
    since: float
    updated: float
    process: int
    machine: str
    working_dir: str = ""


@dataclass(frozen=True)
class RunState:
    """The state of a run's folder.

    Attributes:
        state: `waiting` (nothing there), `running`, `completed`, `failed`, `interrupted`, or `lost`: its record says
            that it runs, but its process is dead.
        record: What is there of the record.
        progress: What it is at while it runs, or was at when its process died.
        reason: Why its record can't be read.
    """

    state: str
    record: Record | None = None
    progress: Progress | None = None
    reason: str = ""


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Own a run's folder while a block runs, and keep its progress there.

    Raises:
        Occupied: another process runs in the folder.
    """
    make_folder(folder)
    since, written, working_dir = time.time(), 0.0, str(Path.cwd())
    last: Progress | None = None

    def write(what: str, done: float, total: float) -> None:
        nonlocal last, written
        now = time.time()
        changed = last is None or last.what != what
        last = Progress(what, done, total, since, now, os.getpid(), platform.node(), working_dir)
        if changed or now - written >= EVERY_S:
            written = now
            write_atomically(folder / PROGRESS_NAME, json.dumps(asdict(last)).encode(), safely=False)

    with exclusive(folder / LEASE_NAME, str(folder)), watched(write):
        for temporary in temporaries(folder):  # nobody else writes here now
            if temporary.is_leftover or not temporary.is_of_this_machine:
                temporary.remove()
        try:
            yield
        finally:
            (folder / PROGRESS_NAME).unlink(missing_ok=True)


def clear_up(folder: Path) -> None:
    """Remove what a process left that died in a run's folder; its record stays."""
    if not is_held(folder / LEASE_NAME):
        (folder / PROGRESS_NAME).unlink(missing_ok=True)
        remove_leftovers(folder)


def state_of(folder: Path, is_held: Callable[[Path], bool] = is_held) -> RunState:
    """The state of a run's folder; a record that can't be read counts as failed.

    Args:
        folder: The folder.
        is_held: Whether a living process has a lease, for those who watch longer than for one look.
    """
    if not (folder / FILE_NAME).exists():
        return RunState("waiting")
    try:
        record = read_record(folder)
    except StorageError as error:
        return RunState("failed", reason=str(error))
    assert record is not None
    if record.status in ("failed", "interrupted"):
        return RunState(record.status, record)
    if is_held(folder / LEASE_NAME):  # a record that is complete stays so while more is added to it
        return RunState("running", record, _progress(folder))
    if record.status == "running":
        return RunState("lost", record, _progress(folder))
    return RunState(record.status, record)


def _progress(folder: Path) -> Progress | None:
    try:
        return TypeAdapter(Progress).validate_json((folder / PROGRESS_NAME).read_bytes())
    except (OSError, ValueError):  # it has just ended, or is being written by another version
        return None
