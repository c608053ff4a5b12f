"""Run the jobs of a plan: each as soon as what it needs has ended, whatever became of that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from pathlib import Path

from linearpatch.errors import StorageError
from linearpatch.results.files import FILE_NAME, write_record
from linearpatch.results.record import Record
from linearpatch.results.state import clear_up, state_of
from linearpatch.storage.files import check_log
from linearpatch.storage.leases import Lease
from linearpatch.sweep.launching import Ending, Launcher, Submit
from linearpatch.sweep.plan import Job, Plan
from linearpatch.sweep.worker import OUTPUT_NAME, last_output

log = logging.getLogger(__name__)

RESUBMISSIONS = 3  # of a job whose launcher's own worker broke before the job ended


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        record: Its record, as the process left it, or with what is known of its death.
        seconds: From its start to its end; None where nothing was done.
    """

    job: Job
    record: Record
    seconds: float | None = None


class _StoppedEarly(Exception):
    """Leaves the launcher's block before all jobs have ended, so that it stops those that run."""


def execute(
    plan: Plan,
    launcher: Launcher,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    *,
    fail_fast: bool = False,
) -> list[Outcome]:
    """Run what is pending.

    Args:
        plan: The jobs.
        launcher: Where they run.
        on_outcome: Called with each job as it ends.
        fail_fast: Stop all jobs when one fails; they resume when the sweep is run again.

    Returns:
        What became of the runs, in the plan's order.
    """
    outcomes: dict[str, Outcome] = {}

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.job.name] = outcome
        on_outcome(outcome)

    def check() -> None:
        failed = [name for name, outcome in outcomes.items() if outcome.record.status != "completed"]
        if fail_fast and failed:
            raise _StoppedEarly(failed[0])

    try:
        for job in plan.jobs:
            if job.done is not None:
                ended(Outcome(job, job.done))
            elif job.error is not None:
                ended(Outcome(job, _failed(job, str(job.error))))
        check()
        pending = [job for job in plan.jobs if job.is_pending]
        if pending:
            with launcher.opened() as submit:
                _run(pending, submit, ended, check)
    except _StoppedEarly as failure:
        log.error("fail_fast=true: %s failed, and the sweep stops", failure)
        for job in plan.jobs:
            if job.name not in outcomes:
                outcomes[job.name] = Outcome(job, _stopped(job, str(failure)))
    return [outcomes[job.name] for job in plan.runs]


def _run(pending: Sequence[Job], submit: Submit, ended: Callable[[Outcome], None], check: Callable[[], None]) -> None:
    """Submit jobs as they may begin; `check` may stop all of them once those that ended together are known."""
    waiting = list(pending)
    open_names = {job.name for job in pending}
    running: dict[Future[Ending], Job] = {}
    results: dict[str, _FileTimes] = {}
    broken: dict[str, int] = {}
    while waiting or running:
        ready = [job for job in waiting if not job.needs & open_names]
        waiting = [job for job in waiting if job not in ready]
        for job in list(ready):
            try:
                check_log(job.request.path / OUTPUT_NAME)
            except StorageError as error:
                ready.remove(job)
                open_names.discard(job.name)
                ended(Outcome(job, _failed(job, str(error))))
        check()
        if ready:
            results |= {job.name: _FileTimes.now(job.request.path) for job in ready if job.name not in results}
            running |= dict(zip(submit([job.request for job in ready]), ready, strict=True))
        if not running:
            continue
        over, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in over:
            job = running.pop(future)
            try:
                ending = future.result()
            except BrokenExecutor as error:
                broken[job.name] = broken.get(job.name, 0) + 1
                if broken[job.name] <= RESUBMISSIONS:
                    log.info("%s: its worker failed; retrying", job.name)
                    waiting.append(job)
                    continue
                ending = Ending(None, f"its worker failed {RESUBMISSIONS + 1} times: {error}")
            except Exception as error:  # launchers have kinds of their own for dead workers and nodes
                ending = Ending(None, f"its worker died: {' '.join(str(error).split())[:300]}")
            open_names.discard(job.name)
            ended(Outcome(job, _record_of(job, ending, results[job.name]), ending.seconds))
        check()


@dataclass(frozen=True)
class _FileTimes:
    """What a job's folder held before it began: when its record and its output were written last."""

    record: int
    output: int

    @classmethod
    def now(cls, folder: Path) -> _FileTimes:
        return cls(_written(folder / FILE_NAME), _written(folder / OUTPUT_NAME))


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _record_of(job: Job, ending: Ending, before: _FileTimes) -> Record:
    """The record that a process left; where it died, its record says so from now on."""
    folder = job.request.path
    state = state_of(folder, lambda path: Lease(path).is_alive())
    record = state.record
    after = _FileTimes.now(folder)
    if ending.code == 0 and record is not None:
        return record
    is_its_own = after.record != before.record and state.state != "running"  # else another process has the folder
    if record is not None and is_its_own and state.state in ("failed", "interrupted"):
        return record
    said = last_output(folder) if after.output != before.output else ""
    reason = ending.reason or f"its process ended with status {ending.code}"
    error = f"{reason}. Last output: {said}" if said else reason
    if record is None or not is_its_own:
        return _failed(job, error)
    record.status, record.error = "failed", error
    write_record(record, folder)
    clear_up(folder)
    return record


def _stopped(job: Job, culprit: str) -> Record:
    """A record for tables alone, of a job that didn't end because another failed."""
    record = _failed(job, f"stopped because {culprit} failed (fail_fast=true)")
    record.status = "interrupted"
    return record


def _failed(job: Job, error: str) -> Record:
    """A record for tables alone, of a job that left none."""
    name = " ".join(job.request.overrides[0]) if job.experiment is None else job.name
    return Record(name, job.request.group, "", 0, {}, status="failed", error=error)
