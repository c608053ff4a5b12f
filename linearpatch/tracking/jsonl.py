"""A file of numbers in the run's folder, that anything can plot.

`metrics.jsonl` has one JSON object a line, and every line has the same keys:

    run_id, model, corpus, pruner, patch, distill, num_pruned_layers, seed    which run
    kind        `curve` (a point of a loss curve) or `metric` (what was measured at the end)
    stage       dense, pruned, patched or distilled
    name        such as `distill/loss` or `ppl/wikitext2`
    step        of a curve; null for a metric
    value       the number; null where it isn't finite
    stderr, n   standard error and what was counted, of a metric; null where there is none
    x_dense     the metric as a multiple of the dense model's; null where they aren't comparable
    unit        `share`, `s`, `1/s`, `bytes`, `FLOP`, `count`, or empty

    pandas.concat(pandas.read_json(file, lines=True) for file in Path("outputs").glob("*/metrics.jsonl"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearpatch.registry import component
from linearpatch.results.fields import plain
from linearpatch.results.record import Record
from linearpatch.storage.files import open_log, write_atomically
from linearpatch.tracking.tracker import Curve, Tracker
from linearpatch.tracking.views import labels, times_dense

FILE_NAME = "metrics.jsonl"


@component("tracker", "jsonl")
@dataclass(frozen=True)
class JsonlTracker(Tracker):
    """One line of JSON for each number, in `metrics.jsonl` of the run's folder."""

    @contextmanager
    def follow(self, record: Record, folder: Path) -> Iterator[Curve]:
        """Add points of curves as they come; when the block ends, the file holds those and all metrics once."""
        file, points = folder / FILE_NAME, list[Mapping[str, float]]()

        def add(point: Mapping[str, float]) -> None:
            points.append(point)
            with open_log(file) as lines:
                lines.write(_text(_curve_lines(record, [point])))

        try:
            yield add
        finally:
            if record.distillation and record.distillation.curve:  # also where it was trained by an earlier request
                sections = [plain(point) for point in record.distillation.curve]
                points = [{f"distill/{name}": value for name, value in point.items()} for point in sections]
            content = _text([*_curve_lines(record, points), *_metric_lines(record)])
            write_atomically(file, content.encode())


def _curve_lines(record: Record, points: Iterable[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    for point in points:
        step = point.get("distill/step")
        for name, value in point.items():
            if name != "distill/step":
                yield _line(record, "curve", "distilled", name, step=step, value=value)


def _metric_lines(record: Record) -> Iterator[dict[str, Any]]:
    for stage, metrics in record.metrics.items():
        for name, metric in metrics.items():
            yield _line(
                record,
                "metric",
                stage,
                name,
                value=metric.value,
                stderr=metric.stderr,
                n=metric.n,
                x_dense=times_dense(record, stage, name),
                unit=metric.unit,
            )


def _line(record: Record, kind: str, stage: str, name: str, **values: Any) -> dict[str, Any]:
    empty = {"step": None, "value": None, "stderr": None, "n": None, "x_dense": None, "unit": ""}
    run = {"run_id": record.run_id, **labels(record)}
    return {**run, "kind": kind, "stage": stage, "name": name, **empty, **values}


def _text(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(plain(line), allow_nan=False)}\n" for line in lines)
