"""Every size of the recommended recipe by `linearpatch frontier`, against one run for each size with a shared cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Claim, command_seconds, linked_cache
from benchmarks.sweep import records
from linearpatch.models.embedded import EmbeddedModel
from linearpatch.storage.cache import default_cache_dir

SIZES = range(1, 13)
# The patched model alone is measured, on little text: evaluation is each size's own work and can't be shared.
SETTINGS = (
    "experiment=recommended",
    "calibration.corpus=null",
    "stages=[dense,patched]",
    "eval.ppl.num_blocks=8",
    "tracker=none",
)


def claims() -> list[Claim]:
    """Sizes 1 to 12 of 30 layers: time of one frontier / of twelve runs, and whether their records are equal.

    WikiText-2 (the tokenised variant) is read from `LINEARPATCH_DATASETS`; without it the embedded text is.
    """
    corpus = "wikitext2_v1" if "LINEARPATCH_DATASETS" in os.environ else "pydoc"
    settings = [*SETTINGS, f"corpus={corpus}"]
    EmbeddedModel().checkpoint(default_cache_dir())  # converted in advance, for both
    with tempfile.TemporaryDirectory() as folder:
        together, alone = Path(folder) / "together", Path(folder) / "alone"
        sizes = f"{SIZES[0]}-{SIZES[-1]}"
        first = linked_cache(Path(folder) / "cache-together")
        frontier_s = command_seconds(["frontier", *settings, "--sizes", sizes, f"output_dir={together}"], first)
        second = linked_cache(Path(folder) / "cache-alone")
        runs_s = sum(_run_seconds(settings, size, alone, second) for size in SIZES)
        of_frontier, of_runs = records(together), records(alone)
    different = sum(of_frontier.get(run) != record for run, record in of_runs.items())
    return [
        Claim(
            "frontier of the recommended recipe: time / runs alone with a shared cache",
            frontier_s / runs_s, 0.35, "", f"{frontier_s:.0f} s / {runs_s:.0f} s, sizes {sizes}, {corpus}",
        ),
        Claim("records that differ but for timings and places", different, 0, "", f"{len(of_runs)} runs"),
    ]  # fmt: skip


def _run_seconds(settings: Sequence[str], size: int, folder: Path, cache: Path) -> float:
    place = folder / f"{size}-layers"
    return command_seconds(["run", *settings, f"num_pruned_layers={size}", f"output_dir={place}"], cache)
