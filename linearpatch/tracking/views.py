"""What trackers show of a record: labels to group runs by, numbers with flat names, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from linearpatch.results.display import metric_names
from linearpatch.results.questions import QUESTIONS
from linearpatch.results.record import Record
from linearpatch.results.scores import LayerScores, SearchStep

NUM_REMOVED = "num_pruned_layers"  # the axis that metrics are drawn against


@dataclass(frozen=True)
class Table:
    """Rows of values of JSON."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def labels(record: Record) -> dict[str, str | int]:
    """What distinguishes a run from others: names of its choices, the layers that are removed, the seed."""
    chosen = {group: str(name) for group, name in record.config.get("choices", {}).items()}
    return {**chosen, NUM_REMOVED: int(record.config.get(NUM_REMOVED, 0)), "seed": record.seed}


def dense_value(record: Record, stage: str, name: str) -> float | None:
    """The dense model's value of a metric of a later stage, where both were measured alike on the same data."""
    metric, dense = (record.metrics.get(of_stage, {}).get(name) for of_stage in (stage, "dense"))
    if stage == "dense" or metric is None or dense is None or not metric.is_comparable(dense):
        return None
    return dense.value


def times_dense(record: Record, stage: str, name: str) -> float | None:
    """A metric as a multiple of the dense model's, such as 1.27; None where they aren't comparable."""
    value, dense = record.metrics[stage][name].value, dense_value(record, stage, name)
    return value / dense if value is not None and dense else None


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by flat names.

    `patched/ppl/wikitext2`, with `_stderr` and `_x_dense` (a multiple of dense's) after it;
    `patched/retained/mean_of_ratios/qa/acc`; `patched/num_parameters`; `time/rank` in seconds.
    """
    numbers: dict[str, float | None] = {}
    for stage, metrics in record.metrics.items():
        for name, metric in metrics.items():
            numbers[f"{stage}/{name}"] = metric.value
            numbers[f"{stage}/{name}_stderr"] = metric.stderr
            numbers[f"{stage}/{name}_x_dense"] = times_dense(record, stage, name)
        for definition, kept in record.retained.get(stage, {}).items():
            numbers |= {f"{stage}/retained/{definition}/{name}": average.value for name, average in kept.items()}
        if record.model and record.pruning and record.patch:
            numbers[f"{stage}/num_parameters"] = record.num_parameters(stage)
    numbers |= {f"time/{step}": seconds for step, seconds in record.timings_s.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def against_layers(record: Record) -> dict[int, dict[str, float]]:
    """Metrics by the number of layers removed, for charts that draw one against the other.

    Every stage starts from the dense model, at 0, where both were measured alike. So each run is a line, not a point,
    and lines of runs that removed different numbers of layers share an axis. Of evaluations with very many metrics
    the averages alone are here; `scalars` has all.
    """
    if record.pruning is None:
        return {}
    shown, last = set(metric_names([record])), record.size
    points: dict[int, dict[str, float | None]] = {0: {}, last: {}}
    for stage, metrics in record.metrics.items():
        for name, metric in metrics.items():
            if name in shown and metric.value is not None:
                points[0][f"{stage}/{name}"] = metric.value if stage == "dense" else dense_value(record, stage, name)
                points[last][f"{stage}/{name}"] = metric.value if stage != "dense" else None
    known = {
        count: {name: value for name, value in values.items() if value is not None} for count, values in points.items()
    }
    return {count: values for count, values in known.items() if values}


def tables(record: Record, folder: Path) -> dict[str, Table]:
    """The tables of a run by name: `layers`, `search`, `interfaces`, `questions`; those that have rows."""
    tables = {"questions": _questions(folder)}
    if record.pruning and record.model:
        tables |= {"layers": _layers(record), "search": _search(record), "interfaces": _interfaces(record)}
    return {name: table for name, table in tables.items() if table.rows}


def figures(record: Record, folder: Path) -> dict[str, bytes]:
    """The report's figures of one run, as PNG by name: layer scores, fits, profiles of streams, training."""
    if record.status != "completed":
        return {}
    from linearpatch.report.figures.all import draw  # it imports matplotlib
    from linearpatch.report.reading import Run

    drawings = draw((), [Run(record, folder, ())])
    return {drawing.name: drawing.png for drawing in drawings}


def _layers(record: Record) -> Table:
    """One row for each layer of the dense model: its score, and when it was removed."""
    assert record.pruning is not None
    assert record.model is not None
    scores, removed = record.pruning.scores, record.pruning.removed_layers
    known: Mapping[str, float | None] = {}
    criterion = "score"
    if isinstance(scores, LayerScores):  # a plug-in may record its scores in another form
        known = scores.by_step[0] if scores.by_step else {}
        criterion = (
            scores.criterion if scores.unit != "window" else f"{scores.criterion} of the {scores.unit} from here"
        )
    order = {str(unit): at for at, unit in enumerate(record.pruning.removed or removed, start=1)}
    names = [str(layer) for layer in range(record.model.num_layers)]
    if record.pruning.removed:
        names = [f"{layer}.{part}" for layer in names for part in ("attention", "mlp")]
    rows = (
        (name if record.pruning.removed else int(name), known.get(name), name in order, order.get(name))
        for name in names
    )
    return Table(("layer", criterion, "removed", "order of removal"), tuple(rows))


def _search(record: Record) -> Table:
    """One row for each layer that each step of a search tried."""
    assert record.pruning is not None
    scores = record.pruning.scores
    steps = (scores.steps if isinstance(scores, LayerScores) else None) or []
    rows = (
        (number, int(name) if name.isdecimal() else name, loss, name in _removed_at(step))
        for number, step in enumerate(steps, start=1)
        for name, loss in step.losses.items()
    )
    return Table(("step", "layer", "loss", "removed"), tuple(rows))


def _removed_at(step: SearchStep) -> set[str]:
    """Names of what a step removed."""
    return set(map(str, step.removed if isinstance(step.removed, list) else [step.removed]))


def _interfaces(record: Record) -> Table:
    """One row for each interface, with what the fit says of it."""
    assert record.pruning is not None
    cuts: dict[tuple[float, float], dict[str, float]] = {
        (start, end): {"start": start, "end": end} for start, end in record.pruning.interfaces
    }
    for site in record.patch.sites if record.patch else ():
        values = {key: value for key, value in vars(site).items() if isinstance(value, int | float)}
        cuts[site.start, site.end] = {"start": site.start, "end": site.end, **values}
    columns = ("start", "end", *sorted({key for cut in cuts.values() for key in cut} - {"start", "end"}))
    return Table(columns, tuple(tuple(cut.get(column) for column in columns) for cut in cuts.values()))


def _questions(folder: Path) -> Table:
    """What each question gave at each stage."""
    file = folder / QUESTIONS
    if not file.is_file():
        return Table((), ())
    frame = pandas.read_parquet(file).astype({"metric": str, "document": str})
    frame = frame.astype(object).where(frame.notna(), None)
    return Table(tuple(map(str, frame.columns)), tuple(tuple(row) for row in frame.to_numpy().tolist()))
