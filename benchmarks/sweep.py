"""The house grid as a sweep that shares its work, against the same runs one by one, each with a cache of its own."""

from __future__ import annotations

import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, command_seconds, linked_cache
from linearpatch.models.embedded import EmbeddedModel
from linearpatch.storage.cache import default_cache_dir

PRUNERS = ("sleb", "shortgpt", "taylor", "streamline")
PATCHES = ("none", "diag", "rotate", "lstsq")
# Little text for calibration: what runs share weighs least then, SLEB's search above all.
SETTINGS = ("experiment=demo", "num_pruned_layers=7", "tracker=none", "calibration.num_blocks=2")
# What differs from run to run and from place to place.
PASSING = ("timings_s", "peak_memory_bytes", "environment", "group", "command", "answered", "config")


def claims() -> list[Claim]:
    """16 runs, start-up included; and a rerun of the finished sweep."""
    EmbeddedModel().checkpoint(default_cache_dir())  # converted in advance, for both
    with tempfile.TemporaryDirectory() as folder:
        shared, alone = Path(folder) / "shared", Path(folder) / "alone"
        grid = ["-m", f"pruner={','.join(PRUNERS)}", f"patch={','.join(PATCHES)}"]
        cache = linked_cache(Path(folder) / "cache")
        together = command_seconds(["run", *SETTINGS, *grid, f"output_dir={shared}"], cache)
        again = command_seconds(["run", *SETTINGS, *grid, f"output_dir={shared}"], cache)
        apart = 0.0
        for pruner, patch in product(PRUNERS, PATCHES):
            place = alone / f"{pruner}-{patch}"
            single = [f"pruner={pruner}", f"patch={patch}", f"output_dir={place}"]
            empty = linked_cache(Path(folder) / f"cache-{pruner}-{patch}")
            apart += command_seconds(["run", *SETTINGS, *single], empty)
        different = sum(records(shared)[run] != record for run, record in records(alone).items())
    runs = len(PRUNERS) * len(PATCHES)
    return [
        Claim(
            f"{runs} runs as a sweep / each alone with an empty cache, start-up included",
            together / apart, 0.5, "", f"{together:.0f} s / {apart:.0f} s",
        ),
        Claim("records that differ but for timings and places", different, 0, "", f"{runs} runs"),
        Claim("the finished sweep once more: time for a run", again / runs, 1, "s", f"{again:.1f} s in all"),
    ]  # fmt: skip


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs of a folder by their ids, without what differs from time to time and from place to place."""
    contents = [json.loads(file.read_text()) for file in folder.glob("*/result.json")]
    return {record["run_id"]: {k: v for k, v in record.items() if k not in PASSING} for record in contents}
