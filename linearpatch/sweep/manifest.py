"""What a sweep consists of, in a file beside its runs, for those who watch it."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from linearpatch.errors import StorageError
from linearpatch.results.parsing import reason_of
from linearpatch.storage.files import write_atomically
from linearpatch.storage.leases import leased
from linearpatch.sweep.plan import Plan

FOLDER = ".sweeps"


@dataclass(frozen=True)
class Listed:
    """A job of a sweep.

    Attributes:
        name: The run's id, or the shared step's name.
        part: `run`, or the kind of shared step.
        folder: Where its record is, relative to the sweep's folder.
        error: Why it can't be done at all.
        serves: Of a shared step: the runs that need it.
    """

    name: str
    part: str
    folder: Annotated[str, Field(pattern=r"^[^\x00]{0,4000}$")]
    error: str | None = None
    serves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A sweep.

    Attributes:
        label: The group of its runs.
        planned: When, in seconds since 1970.
        jobs: Shared steps, then runs.
        command: What starts the sweep again …
        working_dir: … and where.
        trials_left: Of a search: trials that come after these jobs; which runs they are isn't known yet.
    """

    label: str
    planned: float
    jobs: tuple[Listed, ...]
    command: str = ""
    working_dir: str = ""
    trials_left: int = 0


@contextmanager
def listed(plan: Plan, command: str, *, trials_left: int = 0) -> Iterator[None]:
    """Write a plan's jobs into the sweep's folder, and show that this process works on them while a block runs."""
    write_manifest(plan, command, trials_left=trials_left)
    with working_on(plan.folder, plan.label):
        yield


@contextmanager
def working_on(folder: Path, label: str) -> Iterator[None]:
    """Show that this process works on a sweep while a block runs."""
    with leased(folder / FOLDER / f"{label}.{secrets.token_hex(4)}.lease", f"the sweep {label}"):
        yield


def leases_of(folder: Path, manifest: Manifest) -> list[Path]:
    """The leases of those who work on a sweep, or did when they were killed."""
    name = re.compile(rf"{re.escape(manifest.label)}\.[0-9a-f]{{8}}\.lease")
    return sorted(path for path in (folder / FOLDER).glob("*.lease") if name.fullmatch(path.name))


def write_manifest(plan: Plan, command: str = "", *, trials_left: int = 0) -> None:
    """Write a plan's jobs into the sweep's folder."""
    base = plan.folder.resolve()
    jobs = tuple(
        Listed(
            job.name,
            job.request.part,
            os.path.relpath(job.request.path.resolve(), base) if job.request.folder else "",
            str(job.error) if job.error else None,
            () if job.is_run else tuple(run.name for run in plan.runs if job.name in run.needs),
        )
        for job in plan.jobs
    )
    manifest = Manifest(plan.label, time.time(), jobs, command, str(Path.cwd()), trials_left)
    content = json.dumps(asdict(manifest), indent=2)
    write_atomically(plan.folder / FOLDER / f"{plan.label}.json", content.encode())


def read_manifests(folder: Path) -> list[Manifest]:
    """The sweeps of a folder, oldest first.

    Raises:
        StorageError: a file is not a manifest of this version.
    """
    manifests = []
    for file in (folder / FOLDER).glob("*.json"):
        try:
            manifests.append(TypeAdapter(Manifest).validate_json(file.read_bytes()))
        except (OSError, ValueError) as error:
            reason = reason_of(error) if isinstance(error, ValidationError) else str(error)
            raise StorageError(f"{file} is not the list of a sweep of this version: {reason}. Move it away.") from error
    return sorted(manifests, key=lambda manifest: manifest.planned)
