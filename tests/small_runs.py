"""Runs on a small random model, from the command line as a person would, and what they record."""

import json
from pathlib import Path

from linearpatch.cli import main

FAST = ("debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none")


def run(*overrides: str) -> int:
    return main(["run", *FAST, *overrides])


def result(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())
