"""What a sweep consists of, in a file beside its runs, for those who watch it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from linearpatch.errors import StorageError
from linearpatch.results.sections import reason_of
from linearpatch.storage import write_atomically
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
    """

    name: str
    part: str
    folder: Annotated[str, Field(pattern=r"^[^\x00]{0,4000}$")]
    error: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A sweep.

    Attributes:
        label: The group of its runs.
        planned: When, in seconds since 1970.
        jobs: Shared steps, then runs.
    """

    label: str
    planned: float
    jobs: tuple[Listed, ...]


def write_manifest(plan: Plan) -> None:
    """Write a plan's jobs into the sweep's folder."""
    base = plan.folder.resolve()
    jobs = tuple(
        Listed(
            job.name,
            job.request.part,
            os.path.relpath(job.request.path.resolve(), base) if job.request.folder else "",
            str(job.error) if job.error else None,
        )
        for job in plan.jobs
    )
    content = json.dumps(asdict(Manifest(plan.label, time.time(), jobs)), indent=2)
    write_atomically(plan.folder / FOLDER / f"{plan.label}.json", content.encode())


def read_manifests(folder: Path) -> list[Manifest]:
    """The sweeps of a folder, oldest first.

    Raises:
        StorageError: a file is not a manifest of this version.
    """
    found = []
    for file in (folder / FOLDER).glob("*.json"):
        try:
            found.append(TypeAdapter(Manifest).validate_json(file.read_bytes()))
        except (OSError, ValueError) as error:
            reason = reason_of(error) if isinstance(error, ValidationError) else str(error)
            raise StorageError(f"{file} is not the list of a sweep of this version: {reason}. Move it away.") from error
    return sorted(found, key=lambda manifest: manifest.planned)
