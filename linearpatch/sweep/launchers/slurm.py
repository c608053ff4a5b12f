"""Jobs of a SLURM cluster, as arrays, by submitit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError, StorageError, require_choice, require_range
from linearpatch.storage.files import make_folder
from linearpatch.storage.temporary import temporaries, temporary_path
from linearpatch.sweep.launching import Ending, Launcher, Submit, run_process
from linearpatch.sweep.request import Request
from linearpatch.text import counted

POLL_S = 2.0


@dataclass(frozen=True)
class SlurmLauncher(Launcher):
    """Each job is a task of a SLURM array; what SLURM kills or preempts costs one job, not the sweep.

    Attributes:
        cluster: `slurm`, or `local`: processes on this machine that stand in for it, for trials.
        folder: Where submitit keeps its files, in a private folder for each sweep that is removed after it; on a file
            system that all nodes see.
        partition: SLURM's; null is the cluster's default.
        timeout_min: Limit of a job's time.
        gpus_per_node: GPUs of a job.
        cpus_per_task: Cores of a job.
        mem_gb: Memory of a job; null is the cluster's default.
        array_parallelism: Jobs at a time.
        additional_parameters: More of `sbatch`, such as `{account: team, qos: high}`.
        setup: Lines of shell that prepare a node.
    """

    cluster: str = "slurm"
    folder: str = "outputs/.slurm"
    partition: str | None = None
    timeout_min: int = 240
    gpus_per_node: int = 1
    cpus_per_task: int = 8
    mem_gb: float | None = None
    array_parallelism: int = 64
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_choice("hydra.launcher.cluster", self.cluster, ("slurm", "local"))
        for name, least in (("array_parallelism", 1), ("timeout_min", 1), ("cpus_per_task", 1), ("gpus_per_node", 0)):
            require_range(f"hydra.launcher.{name}", getattr(self, name), low=least)

    @property
    def at_a_time(self) -> int:
        """The array's limit."""
        return self.array_parallelism

    def describe(self) -> str:
        """Where jobs run."""
        where = "by SLURM" if self.cluster == "slurm" else "on this machine in place of SLURM"
        each = f"{counted(self.gpus_per_node, 'GPU')} and {counted(self.cpus_per_task, 'core')} each"
        return f"{self.array_parallelism} at a time {where}, {each}"

    @contextmanager
    def opened(self) -> Iterator[Submit]:
        """Submitit's executor, and a thread that asks it how jobs are."""
        with self._own_folder() as folder, self._submitting(self._executor(folder)) as submit:
            yield submit

    @contextmanager
    def _own_folder(self) -> Iterator[Path]:
        """A folder for this sweep's pickles, which are code to whoever loads them: nobody else may write there."""
        base = Path(self.folder).expanduser().resolve()
        make_folder(base)
        for left in temporaries(base):
            if left.is_of_the_dead:  # one that is old may be of a sweep whose jobs wait in the queue
                left.remove()
        folder = temporary_path(base / "sweep")
        try:
            folder.mkdir(mode=0o700)
            folder.chmod(0o700)  # a default ACL of the folder above may have widened it
        except OSError as error:
            raise StorageError(
                f"Can't create the folder {folder}: {error.strerror}. Choose another hydra.launcher.folder, on a file "
                "system that all nodes see."
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another sweep's are there
                base.rmdir()

    @contextmanager
    def _submitting(self, executor: Any) -> Iterator[Submit]:
        started: list[tuple[Any, Future[Ending]]] = []
        queued: list[tuple[Request, Future[Ending]]] = []
        lock, stopping = threading.Lock(), threading.Event()

        def submit(requests: Sequence[Request]) -> list[Future[Ending]]:
            futures: list[Future[Ending]] = [Future() for _ in requests]
            with lock:
                queued.extend(zip(requests, futures, strict=True))
            start()
            return futures

        def start() -> None:
            """Hand over what is queued; SLURM keeps to the limit by itself, the stand-in doesn't."""
            with lock:
                room = len(queued) if self.cluster == "slurm" else self.array_parallelism - len(started)
                batch, queued[:] = queued[:room], queued[room:]
                with executor.batch() if self.cluster == "slurm" and len(batch) > 1 else nullcontext():
                    jobs = [executor.submit(run_process, request.to_text()) for request, _ in batch]
                started.extend((job, future) for job, (_, future) in zip(jobs, batch, strict=True))

        def watch() -> None:
            while not stopping.wait(POLL_S if self.cluster == "slurm" else 0.1):
                with lock:
                    over = [(job, future) for job, future in started if job.done()]
                    for pair in over:
                        started.remove(pair)
                for job, future in over:
                    future.set_result(_ending(job))
                if over:
                    start()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield submit
        finally:
            stopping.set()
            watcher.join()
            for job, _ in started:
                job.cancel(check=False)

    def _executor(self, folder: Path) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("hydra/launcher=slurm needs submitit. Run: pip install 'linearpatch[slurm]'") from error
        try:
            executor = submitit.AutoExecutor(folder=folder / "%j", cluster=self.cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"SLURM can't be reached: {error} Submit from a machine that has sbatch, or use hydra/launcher=basic."
            ) from error
        parameters: dict[str, Any] = {
            "name": "linearpatch",
            "timeout_min": self.timeout_min,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_task,
        }
        if self.mem_gb is not None:
            parameters["mem_gb"] = self.mem_gb
        if self.cluster == "slurm":
            parameters["slurm_array_parallelism"] = self.array_parallelism
            parameters["slurm_additional_parameters"] = self.additional_parameters
            parameters["slurm_setup"] = self.setup
            if self.partition is not None:
                parameters["slurm_partition"] = self.partition
        executor.update_parameters(**parameters)
        return executor


def _ending(job: Any) -> Ending:
    """How a job ended; submitit raises where it left no result."""
    try:
        ending = job.result()
        return ending if isinstance(ending, Ending) else Ending(None, f"an unexpected result: {ending!r}")
    except Exception as error:  # submitit has kinds of its own, and whatever the job raised
        reason = " ".join(str(error).split())[:300]
        return Ending(None, f"job {job.job_id} ({job.state}) left no result: {reason}")
