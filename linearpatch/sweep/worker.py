"""A process of a sweep: it carries out one `Request`, and its exit status says how that ended.

python -m linearpatch.sweep.worker REQUEST
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from linearpatch.config import compose_config, resolved, to_experiment
from linearpatch.errors import LinearPatchError, StorageError
from linearpatch.experiment import Experiment
from linearpatch.pipeline import run
from linearpatch.results.record import Record
from linearpatch.results.state import LEASE_NAME, state_of
from linearpatch.runtime.console import PlainFormatter
from linearpatch.runtime.signals import Terminated, terminable
from linearpatch.storage.cache import Cache
from linearpatch.storage.files import check_log, open_log
from linearpatch.storage.leases import Occupied, wait_for
from linearpatch.storage.temporary import is_alive
from linearpatch.sweep.request import Request, command_of
from linearpatch.sweep.shared_jobs import collect_statistics, generate_texts, measure_dense, measure_pruned

log = logging.getLogger(__name__)

OUTPUT_NAME = "output.log"  # what the process printed; the last lines of one that died may say why
COMPLETED, FAILED, STOPPED = 0, 1, 143


def work(request: Request, *, owner: int | None = None, threads: int | None = None) -> int:
    """Do what is asked; the record in its folder says what came of it.

    Args:
        request: What to do.
        owner: The process for whom it is done; when that dies, the work stops.
        threads: Of the CPU's kernels.

    Returns:
        0 where it was completed, 1 where it failed, 143 where it was stopped.
    """
    if owner is not None:
        threading.Thread(target=_stop_without, args=(owner,), daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    _log_to_stderr()
    try:
        with terminable():
            _work(request)
    except (Terminated, KeyboardInterrupt):
        return STOPPED
    except LinearPatchError as error:
        log.error("%s", error)
        return FAILED
    except Exception:
        log.exception("the run failed")
        return FAILED
    return COMPLETED


def _work(request: Request) -> None:
    configs = [compose_config(overrides, request.search_path) for overrides in request.overrides]
    for config in configs:
        config.group = config.group or request.group
    first, *others = [to_experiment(config) for config in configs]

    def attempt(experiment: Experiment, remark: str | None) -> None:
        if request.part == "run":
            _run(request, experiment, resolved(configs[0]), remark)
        else:
            _share(request, [experiment, *others], remark)

    while True:
        try:
            return _with_less_memory(first, attempt)
        except Occupied as error:  # a job of another sweep
            log.info("%s", error)
            wait_for(request.path / LEASE_NAME)


def _run(request: Request, experiment: Experiment, config: Mapping[str, Any], remark: str | None) -> None:
    run(
        experiment,
        request.path,
        config=config,
        command=command_of(request),
        since=request.since,
        run_id=request.name,
        remark=remark,
    )


def _share(request: Request, experiments: Sequence[Experiment], remark: str | None) -> None:
    first = experiments[0]
    if not first.force and is_complete(request):
        return
    cache = Cache(first.cache_path, since=(request.since or time.time()) if first.force else None)
    config = {"choices": first.choices}
    record = Record(request.name, request.group, command_of(request), first.seed, config, remark=remark)
    if request.part == "statistics":
        collect_statistics(experiments, cache, record, request.path)
    elif request.part == "texts":
        generate_texts(first, cache, record, request.path)
    elif request.part == "dense":
        measure_dense(first, cache, record, request.path)
    else:
        measure_pruned(first, cache, record, request.path)


def is_complete(request: Request) -> bool:
    """Whether a shared step is done; after waiting for another sweep's it is."""
    record = state_of(request.path).record
    return record is not None and record.run_id == request.name and record.status == "completed"


def _with_less_memory(experiment: Experiment, attempt: Callable[[Experiment, str | None], None]) -> None:
    """Repeat once with half the batches what runs out of a GPU's memory."""
    smaller = experiment.with_half_batches()
    try:
        return attempt(experiment, None)
    except torch.OutOfMemoryError as error:
        if smaller is None:
            raise
        reason = str(error).partition(".")[0]
    gc.collect()  # out here, where the error's frames don't hold its tensors any more
    torch.cuda.empty_cache()
    log.warning("%s; retrying with half the batch size", reason)
    return attempt(smaller, f"{reason}: repeated with half the batch size")


def _log_to_stderr() -> None:
    package = logging.getLogger("linearpatch")
    package.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)


def _stop_without(owner: int) -> None:
    """Stop this process when another ends, so that nothing runs that nobody waits for."""
    while is_alive(owner):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def redirect_output(folder: Path) -> None:
    """Send all that this process prints, libraries and crashes included, to a file of the run's folder.

    Raises:
        StorageError: there can't be such a file.
    """
    with open_log(folder / OUTPUT_NAME) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()


def work_redirected(request: Request, *, owner: int, threads: int | None = None) -> int:
    """`work` whose output goes to the run's folder."""
    try:
        redirect_output(request.path)
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return work(request, owner=owner, threads=threads)


def last_output(folder: Path, lines: int = 3) -> str:
    """The end of what a process printed."""
    try:
        check_log(folder / OUTPUT_NAME)
        said = (folder / OUTPUT_NAME).read_text(errors="replace").splitlines()
    except (StorageError, OSError):
        return ""
    return " / ".join(line.strip() for line in said[-lines:] if line.strip())


if __name__ == "__main__":
    sys.exit(work_redirected(Request.from_text(sys.argv[1]), owner=os.getppid()))
