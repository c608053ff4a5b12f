"""A sweep as tables: what it would do, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from linearpatch.sweep.plan import Plan
from linearpatch.sweep.schedule import Outcome

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
        table.add_row(outcome.job.name if outcome.job.experiment else outcome.record.run_id, state, time, note)
    return table


def plan_table(plan: Plan) -> Table:
    """One row for each job, in the order in which they can begin."""
    pending = [job for job in plan.jobs if job.is_pending]
    title = f"{plan.label}: {len(pending)} jobs to do in {plan.folder}"
    table = Table(title=title, title_justify="left")
    for column in ("job", "what", "state", "after"):
        table.add_column(column)
    for job in plan.jobs:
        state = "complete already" if job.done else str(job.error) if job.error else "to do"
        name = job.name if job.experiment else " ".join(job.request.overrides[0])
        table.add_row(name, PARTS[job.request.part], state, "\n".join(sorted(job.needs)))
    return table


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.2), duration(75), duration(7300)
    ('4 s', '1 min 15 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
