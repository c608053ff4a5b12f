"""A sweep whose jobs share one device two at a time, against the same runs one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import Claim, command_seconds
from benchmarks.sweep import records

SETTINGS = ("model=random", "num_pruned_layers=4", "tracker=none", "patch=lstsq")
ON_A_GPU = (
    "model.dtype=bfloat16", "model.settings.hidden_size=512", "model.settings.intermediate_size=1536",
    "calibration.num_blocks=16", "calibration.block_length=512", "eval.ppl.seq_len=512", "eval.ppl.num_blocks=16",
)  # fmt: skip
WITHOUT_GPU = ("debug=tiny", "model.settings.num_hidden_layers=6")  # in float32: CPUs may compute bfloat16 slowly
PRUNERS = ("streamline", "shortgpt")


def sharing_claims() -> list[Claim]:
    """Two jobs at a time on one device give the records of one at a time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = ON_A_GPU if torch.cuda.is_available() else WITHOUT_GPU
        sharing = ["hydra.launcher.gpus_per_job=0.5", "hydra.launcher.n_jobs=2"]
        together = _time(["-m", f"pruner={','.join(PRUNERS)}", *sharing, *size], folder / "together")
        apart = sum(_time([f"pruner={pruner}", *size], folder / "apart" / pruner) for pruner in PRUNERS)
        expected = records(folder / "apart")
        different = [run for run, record in records(folder / "together").items() if expected.get(run) != record]
    detail = f"{len(PRUNERS)} runs: {together:.0f} s two at a time, {apart:.0f} s each alone, start-up included"
    return [
        Claim("records of two jobs on one device that differ from those of one", len(different), 0, "", detail),
        Claim("runs that are missing", len(PRUNERS) - len(expected), 0, "", detail),
    ]


def _time(arguments: Sequence[str], folder: Path) -> float:
    """Seconds that runs in a folder take with a cache of their own; with one thread each where they share a CPU.

    Sums in another order differ in their last digits, and two jobs at a time have half of the threads each.
    """
    words = ["run", *SETTINGS, *arguments, f"output_dir={folder}"]
    threads = None if torch.cuda.is_available() else 1
    return command_seconds(words, folder.with_name(f"{folder.name}-cache"), threads=threads)
