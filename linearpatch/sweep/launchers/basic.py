"""Jobs on this machine: one at a time on a CPU, one on each GPU."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import ModuleType

import torch

from linearpatch.errors import ConfigError, require_range
from linearpatch.runtime.distributed import usable_cores
from linearpatch.sweep.launching import Ending, Launcher, Submit
from linearpatch.sweep.request import Request
from linearpatch.sweep.worker import work_redirected
from linearpatch.text import counted

VISIBLE = "CUDA_VISIBLE_DEVICES"
_MAIN_LOCK = threading.Lock()


@dataclass(frozen=True)
class BasicLauncher(Launcher):
    """A pool of this machine's GPUs, or of its CPU.

    Processes are forked from one that has imported everything, so that a job starts in no time.

    Attributes:
        n_jobs: Jobs at a time; null is one for each GPU (or group of them), and one on a CPU. -1 is one for each usable
            core, -2 one less.
        gpus_per_job: GPUs that each job sees; a fraction lets several share one. 0: jobs run on the CPU.
        threads: CPU threads of a job; null is its share of the cores.
    """

    n_jobs: int | None = None
    gpus_per_job: float = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        cores = usable_cores()
        if self.n_jobs is not None and (self.n_jobs == 0 or self.n_jobs < -cores):
            raise ConfigError(
                f"hydra.launcher.n_jobs is {self.n_jobs}. Allowed on this machine: 1, 2, …, or -1 for one on each of "
                f"{counted(cores, 'core')}{f', down to -{cores} for a single one' if cores > 1 else ''}."
            )
        if self.threads is not None:
            require_range("hydra.launcher.threads", self.threads, low=1)
        if not (0 < self.gpus_per_job < 1 or (float(self.gpus_per_job).is_integer() and self.gpus_per_job >= 0)):
            raise ConfigError(
                f"hydra.launcher.gpus_per_job is {self.gpus_per_job}. Allowed: a whole number, or a share below 1."
            )

    @property
    def at_a_time(self) -> int:
        """One for each slot."""
        return len(self.slots())

    def slots(self) -> list[str | None]:
        """The GPUs that each of the jobs at a time sees; None on a machine without."""
        gpus = visible_gpus() if self.gpus_per_job else []
        if not gpus:
            return [None] * self._jobs_on_cores()
        if self.gpus_per_job < 1:
            slots = [gpu for gpu in gpus for _ in range(int(1 / self.gpus_per_job))]
        else:
            size = int(self.gpus_per_job)
            if size > len(gpus):
                have = counted(len(gpus), "GPU")
                raise ConfigError(f"hydra.launcher.gpus_per_job is {size}, and this machine has {have}.")
            slots = [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]
        return list(slots if self.n_jobs is None else slots[: self._jobs_on_cores()])

    def _jobs_on_cores(self) -> int:
        jobs = self.n_jobs or 1
        return jobs if jobs > 0 else usable_cores() + 1 + jobs

    def describe(self) -> str:
        """Where jobs run."""
        slots = self.slots()
        where = (
            "on this machine's CPU" if slots[0] is None else f"on this machine's GPUs ({', '.join(map(str, slots))})"
        )
        return f"{len(slots)} at a time {where}"

    @contextmanager
    def opened(self) -> Iterator[Submit]:
        """A pool of threads, each of which waits for one process."""
        slots: SimpleQueue[str | None] = SimpleQueue()
        for slot in (opened := self.slots()):
            slots.put(slot)
        threads = self.threads or max(1, torch.get_num_threads() // len(opened))
        running: set[BaseProcess] = set()
        stopping = threading.Event()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["linearpatch.sweep.preload"])

        def run(request: Request) -> Ending:
            if stopping.is_set():
                return Ending(None, "the sweep was stopped")
            slot = slots.get()
            environment = dict(os.environ) if slot is None else {**os.environ, VISIBLE: slot}
            if self.gpus_per_job == 0:
                environment[VISIBLE] = ""
            process = context.Process(target=_process, args=(request.to_text(), environment, threads, os.getpid()))
            began = time.monotonic()
            try:
                with _without_main():
                    process.start()
                running.add(process)
                process.join()
                return Ending.of(process.exitcode or 0, time.monotonic() - began)
            finally:
                running.discard(process)
                slots.put(slot)

        pool = ThreadPoolExecutor(len(opened))

        def submit(requests: Sequence[Request]) -> list[Future[Ending]]:
            return [pool.submit(partial(run, request)) for request in requests]

        try:
            yield submit
        finally:
            stopping.set()
            for process in list(running):
                process.terminate()
            pool.shutdown(cancel_futures=True)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    if named := os.environ.get(VISIBLE):
        return [name.strip() for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def _without_main() -> Iterator[None]:
    """Let a process start without the script that started the sweep, which it would run once more to import it."""
    with _MAIN_LOCK:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _process(text: str, environment: dict[str, str], threads: int, owner: int) -> None:
    """The work of one process; ends it.

    The environment is given, because the process from which it is forked has that of an earlier time.
    """
    os.environ.clear()
    os.environ.update(environment)
    raise SystemExit(work_redirected(Request.from_text(text), owner=owner, threads=threads))
