"""With fail_fast a failure stops the sweep; the same command resumes what was stopped."""

from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from linearpatch.config import compose_experiment
from linearpatch.results.files import write_record
from linearpatch.results.record import Record
from linearpatch.sweep.launching import Ending, Launcher
from linearpatch.sweep.plan import PlannedRun, plan_sweep
from linearpatch.sweep.schedule import execute


class Fake(Launcher):
    """Ends jobs at once, one at a time; those of a seed fail."""

    def __init__(self, failing):
        self.failing, self.began, self.stopped = failing, [], False

    @contextmanager
    def opened(self):
        try:
            yield self.submit
        except BaseException:
            self.stopped = True
            raise

    def submit(self, requests):
        futures = []
        for request in requests:
            future = Future()
            futures.append(future)
            if len(self.began) > 1:
                continue  # still runs
            self.began.append(request.name)
            status = "failed" if f"seed={self.failing}" in request.overrides[0] else "completed"
            request.path.mkdir(parents=True)
            write_record(Record(request.name, None, "", 0, {}, status=status, error=None), request.path)
            future.set_result(Ending(0 if status == "completed" else 1))
        return futures

    def describe(self):
        return "nowhere"


def plan():
    words = ["model=random", "debug=tiny", "output_dir=S", "pruner=magnitude", "patch=none", "eval=[]"]
    asked = [PlannedRun((*words, f"seed={seed}"), compose_experiment([*words, f"seed={seed}"])) for seed in range(4)]
    return plan_sweep(asked, "label", folder=Path("S"))


def test_nothing_runs_on_after_a_failure():
    launcher = Fake(failing=1)
    outcomes = execute(plan(), launcher, fail_fast=True)
    assert launcher.stopped
    assert [outcome.record.status for outcome in outcomes][:2] == ["completed", "failed"]
    assert [outcome.record.status for outcome in outcomes][2:] == ["interrupted", "interrupted"]
    assert "fail_fast=true" in outcomes[2].record.error


def test_what_is_impossible_fails_before_anything_begins():
    jobs = plan()
    broken = jobs.jobs[-1].__class__(**{**vars(jobs.jobs[-1]), "error": ValueError("no")})
    launcher = Fake(failing=None)
    outcomes = execute(jobs.__class__(jobs.label, jobs.folder, (*jobs.jobs[:-1], broken)), launcher, fail_fast=True)
    assert launcher.began == []
    assert [outcome.record.status for outcome in outcomes] == ["interrupted"] * 3 + ["failed"]
