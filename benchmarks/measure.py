"""How the benchmarks measure: ratios taken side by side in one run, memory in fresh processes."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.table import Table
from torch import Tensor

from linearpatch.config import compose_experiment
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.models.model import LoadedModel
from linearpatch.runtime.memory import high_water
from linearpatch.storage.cache import default_cache_dir

Work = Callable[[LoadedModel, Tensor], object]


@dataclass(frozen=True)
class Claim:
    """One claim, measured.

    Attributes:
        what: The claim in words.
        measured: The figure.
        limit: What it may be at most.
        unit: Of both.
        detail: What was measured on.
    """

    what: str
    measured: float
    limit: float
    unit: str
    detail: str


def claims_table(name: str, claims: Sequence[Claim]) -> Table:
    """Claims with measured, limit and their ratio; a ratio up to 1 keeps the claim."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    table = Table(title=f"{name} ({machine}, torch {torch.__version__})", title_justify="left")
    table.add_column("claim")
    for column in ("measured", "limit", "measured / limit"):
        table.add_column(column, justify="right")
    table.add_column("on")
    for claim in claims:
        figures = [f"{value:.3g} {claim.unit}".strip() for value in (claim.measured, claim.limit)]
        ratio = claim.measured / claim.limit if claim.limit else float(claim.measured > 0)
        table.add_row(claim.what, *figures, f"{ratio:.2f}", claim.detail)
    return table


def embedded_model() -> LoadedModel:
    """The embedded model, on the device that a run would use."""
    return compose_experiment(["model=smollm2_135m"]).model.load(default_cache_dir())


def text_blocks(model: LoadedModel, num_blocks: int, block_length: int) -> TokenBlocks:
    """Blocks of the embedded text."""
    reader = compose_experiment(["corpus=pydoc"]).calibration_reader
    return reader.read(BlockSpec(num_blocks, block_length), model.tokenizer)


def time_ratio(
    work: Callable[[], object], baseline: Callable[[], object], *, repeats: int = 20
) -> tuple[float, float, float]:
    """Fastest of `work` over fastest of `baseline`, and both in seconds; they run in turn after a warm-up.

    On a shared machine other work only ever adds time, so the fastest of many runs is what the code costs.
    """
    work()
    baseline()
    pairs = [(_seconds(work), _seconds(baseline)) for _ in range(repeats)]
    ours, other = (min(times) for times in zip(*pairs, strict=True))
    return ours / other, ours, other


def command_seconds(words: Sequence[str], cache: Path, *, threads: int | None = None) -> float:
    """Seconds that a `linearpatch` command takes, start-up included, with a cache of its own.

    Args:
        words: After `linearpatch`.
        cache: Folder of its cache.
        threads: Of its process on the CPU; None: what a run would use.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "LINEARPATCH_CACHE": str(cache)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "linearpatch.cli", *words], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"linearpatch {' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - began


def linked_cache(folder: Path) -> Path:
    """A new cache in which there are only the models that were converted before; returns its folder."""
    folder.mkdir()
    (folder / "models").symlink_to(default_cache_dir() / "models")
    return folder


def peak_memory(work: Work, num_blocks: int, block_length: int) -> int:
    """Bytes that a piece of work needs at its peak, the weights included, in a process of its own.

    On a GPU what was allocated there; on the CPU what the process grew by after importing the packages. glibc there
    returns large blocks when they are freed: by default it soon keeps them, and two runs of the same work differ by
    up to a half.

    Args:
        work: A function of a module (it is sent to the process by name).
        num_blocks: It gets one batch of so many blocks …
        block_length: … of so many tokens.
    """
    return in_own_process(_measure_peak, work, num_blocks, block_length)


def in_own_process(measure: Callable[..., None], *arguments: object) -> int:
    """The number of bytes that a function measures in a process of its own, where freed blocks are returned.

    Args:
        measure: A function of a module; it sends the number to its last argument, a connection.
        arguments: What it is given before that.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*arguments, sender))
    with mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**20)):  # the process inherits it
        process.start()
    sender.close()
    measured = int(receiver.recv())
    process.join()
    return measured


def _measure_peak(work: Work, num_blocks: int, block_length: int, sender) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    import transformers.models.llama.modeling_llama  # noqa: F401 — not part of what is measured

    before = high_water()
    model = embedded_model()
    ids = text_blocks(model, num_blocks, block_length).ids.to(model.decoder.input_device)
    with torch.no_grad():
        work(model, ids)
    cuda = torch.cuda.is_available()
    sender.send(torch.cuda.max_memory_allocated() if cuda else high_water() - before)


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
