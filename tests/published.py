"""The published figures of `experiments/*/published.csv`."""

import csv
from collections import defaultdict
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
COLUMNS = ["table", "model", "num_pruned_layers", "pruner", "patch", "distill", "metric", "value", "source"]
FILES = sorted(EXPERIMENTS.glob("*/published.csv"))
TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "piqa", "winogrande", "wsc273", "race", "copa")
LAYERS = EXPERIMENTS / "pruned_layers" / "published.csv"  # has columns of its own


def lines(file: Path) -> list[dict[str, str]]:
    """The lines of one file."""
    with file.open() as text:
        return list(csv.DictReader(text))


def rows(files=FILES) -> list[dict]:
    """The rows of the published tables: what each is about, and its `values` by metric."""
    found: dict[tuple, dict[str, float]] = defaultdict(dict)
    for file in files:
        for line in lines(file) if file != LAYERS else ():
            metric, value = line.pop("metric"), line.pop("value")
            about = {"experiment": file.parent.name, **{key: text for key, text in line.items() if key != "source"}}
            found[tuple(about.items())][metric] = float(value)
    return [{**dict(about), "values": values} for about, values in found.items()]


def qa_rows() -> list[dict]:
    """The rows that have all nine tasks."""
    return [row for row in rows() if f"qa/{TASKS[0]}" in row["values"]]


def name(row) -> str:
    """A row in short, for tests."""
    keys = ("table", "model", "num_pruned_layers", "pruner", "patch", "distill")
    return "-".join(row[key] for key in keys)
