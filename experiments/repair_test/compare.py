"""One recipe against all others of a sweep: the ratio of their perplexities, with an interval over windows of text.

    python experiments/repair_test/compare.py outputs/repair_test

Perplexities of several sizes are summed up by their geometric mean: the exponential of a mean of losses. So the ratio
of two recipes follows from how far their losses are apart in each window, averaged over sizes, and windows are drawn
with replacement (95 %, percentile bootstrap): tokens near each other depend on each other, windows of 1,024 hardly.
"""

from __future__ import annotations

import sys
from math import exp
from pathlib import Path

import numpy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from safetensors.numpy import load_file
from scipy import stats

from linearpatch.results.files import read_record
from linearpatch.results.record import Record

MINE = "patch_aware + refit"
SIZES = (5, 7, 9)  # of the geometric mean
METRIC = "ppl/wikitext2_v1"
CAPTION = f"mean: geometric, over {', '.join(map(str, SIZES))} layers removed; ours: {MINE}"

Losses = NDArray[numpy.float64]


def main(folder: Path) -> None:
    """Print perplexities by size, their geometric mean, and the ratio of ours to each."""
    losses = {
        (recipe_of(record), num_removed(record), record.seed): windows_of(record, path.parent)
        for path in sorted(folder.glob("*/result.json"))
        if (record := read_record(path.parent)) and record.status == "completed"
    }
    if not losses:
        sys.exit(f"No completed run in {folder} (*/result.json). Make some: linearpatch run -m experiment=repair_test")
    sizes = sorted({size for _, size, _ in losses})
    seeds = sorted({seed for _, _, seed in losses})
    table = Table(
        Column("recipe", no_wrap=True), *map(str, sizes), "mean", "ours / it", "95 % interval", caption=CAPTION
    )
    for recipe in sorted({recipe for recipe, _, _ in losses}):
        found = {
            size: [losses[recipe, size, seed] for seed in seeds if (recipe, size, seed) in losses] for size in sizes
        }
        cells = [" … ".join(f"{exp(value):.2f}" for value in spread(runs)) for runs in found.values()]
        table.add_row(recipe, *cells, *summary(losses, recipe))
    Console(width=110).print(table)


def recipe_of(record: Record) -> str:
    """Pruner and patch, and what they were calibrated on if it wasn't the run's corpus."""
    corpus = record.config["calibration"]["corpus"]
    _, pruning, patch = record.require_edit()
    return f"{pruning.method} + {patch.method}" + (f", {corpus['name']}" if corpus else "")


def num_removed(record: Record) -> int:
    """How many layers a run removed."""
    return len(record.require_edit()[1].removed_layers)


def windows_of(record: Record, folder: Path) -> Losses:
    """Mean loss of each window of the model that the run made."""
    arrays: dict[str, Losses] = load_file(folder / "diagnostics.safetensors")
    stage = "patched" if f"patched/{METRIC}/windows" in arrays else "pruned"
    return arrays[f"{stage}/{METRIC}/windows"]


def spread(runs: list[Losses]) -> list[float]:
    """The mean loss of one run, or the lowest and the highest of several seeds."""
    means = [float(run.mean()) for run in runs]
    return [min(means), max(means)] if len(means) > 1 else means


def summary(losses: dict[tuple[str, int, int], Losses], recipe: str) -> tuple[str, str, str]:
    """Geometric mean over sizes and the seeds that ours has, too; the ratio of ours to it, and its interval."""
    seeds = sorted({seed for _, _, seed in losses})
    shared = [seed for seed in seeds if all((name, size, seed) in losses for name in (MINE, recipe) for size in SIZES)]
    if not shared:
        return "", "", ""
    keys = [(size, seed) for size in SIZES for seed in shared]
    mine, other = (numpy.mean([losses[name, *key] for key in keys], axis=0) for name in (MINE, recipe))
    if recipe == MINE:
        return f"{exp(mine.mean()):.2f}", "1", ""
    drawn = stats.bootstrap((mine - other,), numpy.mean, method="percentile", rng=0).confidence_interval
    ratio = exp((mine - other).mean())
    return f"{exp(other.mean()):.2f}", f"{ratio:.3f}", f"[{exp(drawn.low):.3f}, {exp(drawn.high):.3f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
