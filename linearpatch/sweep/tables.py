"""A sweep as tables: what it would do, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from linearpatch.sweep.estimate import Estimate
from linearpatch.sweep.plan import Job, Plan
from linearpatch.sweep.schedule import Outcome
from linearpatch.text import counted

PARTS = {
    "dense": "evaluate dense",
    "statistics": "statistics",
    "pruned": "choose layers",
    "run": "run",
}


def outcomes_table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each run: its state, its time and its error."""
    table = Table(title="Runs", title_justify="left")
    for column in ("run", "state"):
        table.add_column(column)
    table.add_column("time", justify="right")
    table.add_column("error")
    for outcome in outcomes:
        state = outcome.record.status
        if outcome.seconds is None and outcome.job.done is not None:
            state = "complete already"
        time = "" if outcome.seconds is None else duration(outcome.seconds)
        note = outcome.record.error or outcome.record.remark or ""
        name = outcome.job.name if outcome.job.experiment else outcome.record.run_id
        table.add_row(escape(name), state, time, escape(note))
    return table


def plan_table(plan: Plan, estimates: Mapping[str, Estimate], at_a_time: int | None) -> Table:
    """One row for each job, shared steps first, with what it will roughly cost.

    Args:
        plan: The jobs.
        estimates: Costs by the jobs' names.
        at_a_time: Jobs that run together, where the launcher knows.
    """
    count = sum(job.is_pending for job in plan.jobs)
    impossible = sum(job.error is not None for job in plan.jobs)
    title = f"{plan.label} in {plan.folder}: {counted(count, 'job')} to do"
    title += f", {impossible} impossible" if impossible else ""
    table = Table(title=title, caption=_sum(plan, estimates, at_a_time), title_justify="left", caption_justify="left")
    for column in ("job", "what", "after", "state"):
        table.add_column(column)
    for column in ("time", "memory", "disk"):
        table.add_column(column, justify="right")
    short = {job.name: str(index + 1) for index, job in enumerate(plan.jobs)}
    for job in plan.jobs:
        state = "complete already" if job.done else str(job.error) if job.error else "to do"
        name = job.name if job.experiment else " ".join(job.request.overrides[0])
        after = ", ".join(sorted((short[needed] for needed in job.needs), key=int))
        cost = estimates.get(job.name)
        cells = ("", "", "") if cost is None else (duration(cost.seconds), _gib(cost.memory), _gib(cost.disk))
        table.add_row(escape(f"{short[job.name]} {name}"), PARTS[job.request.part], after, escape(state), *cells)
    return table


def _sum(plan: Plan, estimates: Mapping[str, Estimate], at_a_time: int | None) -> str:
    pending = [job for job in plan.jobs if job.is_pending]
    known = [estimates[job.name] for job in pending if job.name in estimates]
    if not known:
        return "nothing to do" if not pending else "no estimate: the models' configurations aren't at hand"
    seconds = sum(cost.seconds for cost in known)
    many = min(at_a_time or 1, len(pending))
    together = max(seconds / many, _longest_chain(pending, estimates))
    parallel = f", {duration(together)} with {many} at a time" if many > 1 else ""
    missing = len(pending) - len(known)
    text = f"roughly (within a factor of 3): {duration(seconds)} of work{parallel}, up to "
    text += f"{_gib(max(cost.memory for cost in known))} of memory a job, {_gib(sum(cost.disk for cost in known)) or 0}"
    return text + " on disk" + (f"; {counted(missing, 'job')} not known" if missing else "")


def _longest_chain(pending: Sequence[Job], estimates: Mapping[str, Estimate]) -> float:
    """Seconds of the jobs that wait for each other, at worst."""
    ends: dict[str, float] = {}
    left = list(pending)
    names = {job.name for job in pending}
    while left:
        ready = [job for job in left if (job.needs & names) <= ends.keys()]
        for job in ready:
            cost = estimates[job.name].seconds if job.name in estimates else 0.0
            ends[job.name] = cost + max((ends[needed] for needed in job.needs & names), default=0.0)
        left = [job for job in left if job not in ready]
    return max(ends.values())


def _gib(size: int) -> str:
    if size < 2**30:
        return f"{size / 2**20:.0f} MiB" if size else ""
    return f"{size / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.2), duration(75), duration(7300)
    ('4 s', '1 min 15 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
