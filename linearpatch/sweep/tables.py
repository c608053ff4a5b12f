"""A sweep as tables: what it would do, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from linearpatch.sweep.plan import Plan
from linearpatch.sweep.schedule import Outcome
from linearpatch.sweep.search import Search, counts_of
from linearpatch.text import counted

PARTS = {
    "dense": "evaluate dense",
    "texts": "generate texts",
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
        state: str = outcome.record.status
        if outcome.seconds is None and outcome.job.done is not None:
            state = "already complete"
        time = "" if outcome.seconds is None else duration(outcome.seconds)
        note = outcome.record.error or outcome.record.remark or ""
        name = outcome.job.name if outcome.job.experiment else outcome.record.run_id
        table.add_row(escape(name), state, time, escape(note))
    return table


def plan_table(plan: Plan, at_a_time: int | None) -> Table:
    """One row for each job, shared steps first.

    Args:
        plan: The jobs.
        at_a_time: Jobs that run together, where the launcher knows.
    """
    count = sum(job.is_pending for job in plan.jobs)
    impossible = sum(job.error is not None for job in plan.jobs)
    title = f"{plan.label} in {plan.folder}: {counted(count, 'job')} to do"
    title += f", {impossible} impossible" if impossible else ""
    caption = f"{at_a_time} at a time" if at_a_time and count > 1 else None
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("job", "what", "after", "state"):
        table.add_column(column)
    short = {job.name: str(index + 1) for index, job in enumerate(plan.jobs)}
    for job in plan.jobs:
        state = "already complete" if job.done else str(job.error) if job.error else "to do"
        name = job.name if job.experiment else " ".join(job.request.overrides[0])
        after = ", ".join(sorted((short[needed] for needed in job.needs), key=int))
        table.add_row(escape(f"{short[job.name]} {name}"), PARTS[job.request.part], after, escape(state))
    return table


def search_table(search: Search) -> Table:
    """The best trial of a search, or those that no other beats in all objectives; the caption counts all."""
    counts = ", ".join(f"{count} {state}" for state, count in counts_of(search.study.trials).items())
    caption = f"{counted(len(search.study.trials), 'trial')}: {counts}; study {search.study.study_name}"
    title = "Best trial" if len(search.objectives) == 1 else "Pareto front"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("trial", justify="right")
    for objective in search.objectives:
        table.add_column(escape(f"{objective.name} ({objective.direction})"), justify="right")
    table.add_column("settings")
    table.add_column("run")
    for trial, values in search.best():
        settings = " ".join(f"{key}={value}" for key, value in trial.params.items())
        numbers = [f"{value:,.6g}" for value in values]
        table.add_row(str(trial.number), *numbers, escape(settings), escape(str(trial.user_attrs.get("run_id", ""))))
    return table


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
