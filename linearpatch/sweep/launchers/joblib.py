"""Jobs on a grid of CPU processes, by joblib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from linearpatch.errors import ConfigError
from linearpatch.sweep.launching import Ending, Launcher, Submit, run_process
from linearpatch.sweep.request import Request


@dataclass(frozen=True)
class JoblibLauncher(Launcher):
    """joblib's pool of processes, of which each watches over one job at a time.

    Attributes:
        n_jobs: Jobs at a time; -1 is one for each usable core, -2 one less.
        threads: CPU threads of a job; null is its share of the cores.
    """

    n_jobs: int = -1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.n_jobs == 0 or self.at_a_time < 1:
            raise ConfigError(
                f"hydra.launcher.n_jobs is {self.n_jobs}. Allowed on this machine: 1, 2, …, or -1 for all cores to "
                f"-{_usable_cores()} for one."
            )

    @property
    def at_a_time(self) -> int:
        """Jobs at a time."""
        return self.n_jobs if self.n_jobs > 0 else _usable_cores() + 1 + self.n_jobs

    def describe(self) -> str:
        """Where jobs run."""
        return f"{self.at_a_time} at a time on this machine's CPU, by joblib"

    @contextmanager
    def opened(self) -> Iterator[Submit]:
        """Joblib's executor; a worker that is killed breaks it, and it is replaced."""
        from joblib.externals.loky import get_reusable_executor

        threads = self.threads or max(1, _usable_cores() // self.at_a_time)
        environment = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}

        def submit(requests: Sequence[Request]) -> list[Future[Ending]]:
            executor = get_reusable_executor(max_workers=self.at_a_time)
            return [executor.submit(run_process, request.to_text(), environment) for request in requests]

        try:
            yield submit
        finally:
            get_reusable_executor(max_workers=self.at_a_time).shutdown(wait=True, kill_workers=True)


def _usable_cores() -> int:
    from joblib import cpu_count

    return int(cpu_count())
