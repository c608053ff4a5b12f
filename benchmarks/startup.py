"""What a command costs before it computes anything, and what planning a sweep costs for each run."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.measure import Claim
from linearpatch.cli.run import compose, parse

QUICK = {
    "list": ["list"],
    "--help": ["--help"],
    "run --help": ["run", "--help"],
    "the error for a misspelt choice": ["run", "pruner=slebb"],
}
LIMIT_S = 1.5
PLANNED = ("model=random", "pruner=sleb,shortgpt,taylor,streamline", "patch=none,diag,rotate,lstsq", "seed=range(0,8)")
PLANNED_RUNS = 4 * 4 * 8
PLAN_LIMIT_MS = 20.0


def claims() -> list[Claim]:
    """Both in CPU time (user and system), which other work on the machine hardly changes."""
    claims = [
        Claim(f"CPU time of {what}", min(cpu_seconds(words) for _ in range(3)), LIMIT_S, "s", "fastest of 3 processes")
        for what, words in QUICK.items()
    ]
    planning = min(plan_ms() for _ in range(3))
    on = f"{PLANNED_RUNS} runs, fastest of 3 plans"
    return [*claims, Claim("CPU time of planning, for each run", planning, PLAN_LIMIT_MS, "ms", on)]


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system time of a command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "linearpatch.cli", *words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def plan_ms(words: Sequence[str] = PLANNED) -> float:
    """Milliseconds of CPU that a sweep's plan takes for each run: composing, checking, linking."""
    with tempfile.TemporaryDirectory() as folder:
        _plan([words[0], f"output_dir={folder}"])  # what is read once
        began = time.process_time()
        runs = _plan([*words, f"output_dir={folder}"])
        return 1000 * (time.process_time() - began) / runs


def _plan(words: Sequence[str]) -> int:
    """Plan a sweep; returns the number of its runs."""
    from linearpatch.cli.jobs import Jobs
    from linearpatch.config import register_schemas

    register_schemas()
    jobs = Jobs(dry_run=True)
    compose(parse(["-m", *words]), jobs)
    assert jobs.plan is not None
    return len(jobs.plan.runs)
