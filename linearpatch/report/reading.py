"""Finds the run records below some folders; those that can't be used are kept with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from linearpatch.errors import StorageError
from linearpatch.report.rows import Row, rows_of_run
from linearpatch.results.files import FILE_NAME, read_record
from linearpatch.results.record import Record
from linearpatch.results.sections import ModelSection, PatchSection, PruningSection


@dataclass(frozen=True)
class Run:
    """A completed run.

    Attributes:
        record: What it did and found.
        folder: Where it lies.
        rows: One for each stage that it measured.
    """

    record: Record
    folder: Path
    rows: tuple[Row, ...]

    @property
    def model(self) -> ModelSection:
        """The dense model."""
        return self.record.require_edit()[0]

    @property
    def pruning(self) -> PruningSection:
        """Which layers were removed."""
        return self.record.require_edit()[1]

    @property
    def patch(self) -> PatchSection:
        """What was fitted."""
        return self.record.require_edit()[2]


@dataclass(frozen=True)
class Failure:
    """A record that the report leaves out.

    Attributes:
        run_id: Of the run; the folder's name where that isn't known.
        folder: Where it lies.
        status: `failed`, `interrupted`, `running`, or `unreadable`.
        reason: Why it is left out.
    """

    run_id: str
    folder: Path
    status: str
    reason: str


@dataclass(frozen=True)
class ReadRuns:
    """What lies below some folders.

    Attributes:
        runs: Those that completed, one for each run id, the newest first.
        failures: Those that didn't, or can't be read.
        remarks: What readers should know of the choice.
    """

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    remarks: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> ReadRuns:
    """Read every record in some folders and below them; hidden folders are skipped.

    Raises:
        StorageError: a folder isn't there, or there is no record at all.
    """
    for folder in folders:
        if not folder.is_dir():
            raise StorageError(f"{folder} is not a folder. Name folders of runs, such as outputs.")
    outcomes = [_read(folder) for folder in dict.fromkeys(_run_folders(folders))]
    if not outcomes:
        named = ", ".join(str(folder) for folder in folders) or "no folder"
        raise StorageError(f"There is no {FILE_NAME} in {named} or below. Name the folder of a run or of a sweep.")
    runs, remarks = _newest([outcome for outcome in outcomes if isinstance(outcome, Run)])
    completed = {run.record.run_id: run.folder for run in runs}
    failures = []
    for failure in (outcome for outcome in outcomes if isinstance(outcome, Failure)):
        if failure.run_id in completed:
            better = completed[failure.run_id]
            remarks.append(f"{failure.run_id} is {failure.status} in {failure.folder} and completed in {better}")
        else:
            failures.append(failure)
    return ReadRuns(tuple(runs), tuple(failures), tuple(remarks))


def _run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    for start in folders:
        for place, inner, files in os.walk(start.resolve()):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if FILE_NAME in files:
                yield Path(place)


def _read(folder: Path) -> Run | Failure:
    try:
        record = read_record(folder)
    except StorageError as error:
        return Failure(folder.name, folder, "unreadable", str(error))
    if record is None:
        return Failure(folder.name, folder, "unreadable", f"{FILE_NAME} was removed while it was read")
    if record.status != "completed":
        unknown = "it is running, or was killed" if record.status == "running" else "no reason given"
        return Failure(record.run_id, folder, record.status, record.error or unknown)
    try:
        record.require_edit()
    except ValueError as error:
        return Failure(record.run_id, folder, "unreadable", f"{folder / FILE_NAME}: {error}")
    return Run(record, folder, tuple(rows_of_run(record)))


def _newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run for each run id, the one written last, the newest first; and what was left out."""
    kept: dict[str, Run] = {}
    remarks = []
    for run in sorted(runs, key=lambda run: (run.folder / FILE_NAME).stat().st_mtime, reverse=True):
        newer = kept.setdefault(run.record.run_id, run)
        if newer is not run:
            remarks.append(f"{run.record.run_id} is in two folders: {newer.folder} is newer, {run.folder} is left out")
    return list(kept.values()), remarks
