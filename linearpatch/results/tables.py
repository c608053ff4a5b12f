"""What a person sees at the end: one run's stages, or a sweep's runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.markup import escape
from rich.table import Table

from linearpatch.results.display import (
    STAGES,
    headline_names,
    how_measured,
    label,
    marks,
    metric_names,
    notes,
    retained_text,
    value_text,
    versus_text,
)
from linearpatch.results.record import Record
from linearpatch.results.settings import settings, telling


def run_table(record: Record) -> Table:
    """One row for each metric, one column for each stage: its value, and how far it is from dense."""
    layers = layer_list(record.pruning["removed_layers"])
    title = (
        f"{record.model['name']}: {len(record.pruning['removed_layers'])} of {record.model['num_layers']} layers "
        f"removed by {record.pruning['method']} ({layers}), patch {record.patch['method']}"
    )
    names = metric_names([record])
    table = _table(title, notes([record], names))
    stages = [stage for stage in STAGES if stage in record.metrics]
    table.add_column("", no_wrap=True)
    for stage in stages:
        table.add_column(stage, justify="right")
        if stage != "dense":
            table.add_column("against dense", justify="right")
    for evaluation, members in groupby(names, key=lambda name: name.partition("/")[0]):
        rows = list(members)
        if len(rows) > 1:
            table.add_row(evaluation)
        for name in rows:
            short = label(name, [record])
            _add_metric(table, record, stages, name, short if len(rows) == 1 else f"  {short.partition('/')[2]}")
        table.add_section()
    cells = ["parameters"]
    for stage in stages:
        count, change = _parameters(record, stage)
        cells += [count] + ([change] if stage != "dense" else [])
    table.add_row(*cells)
    return table


def _add_metric(table: Table, record: Record, stages: Sequence[str], name: str, text: str) -> None:
    """A metric's row; below an average that stands for its evaluation what is retained, in both definitions."""
    cells = [text]
    for stage in stages:
        metric, dense = (record.metrics.get(which, {}).get(name) for which in (stage, "dense"))
        cells += [value_text(metric)] + ([versus_text(metric, dense)] if stage != "dense" else [])
    table.add_row(*cells)
    for definition in ("mean_of_ratios", "ratio_of_means") if name in headline_names([record]) else ():
        if any(name in kept.get(definition, {}) for kept in record.retained.values()):
            cells = [f"  retained, {definition.replace('_', ' ')} %"]
            for stage in stages:
                cells += ["100"] if stage == "dense" else ["", retained_text(record, stage, name, definition)]
            table.add_row(*cells)


def comparison_table(records: Sequence[Record]) -> Table:
    """One row for dense, one for each distinct pruned model, one for each patched model."""
    records = sorted((record for record in records if record.metrics and record.pruning), key=_order)
    models = list(dict.fromkeys(record.model["name"] for record in records))
    pruners = list(dict.fromkeys(record.pruning["method"] for record in records))
    title = f"{models[0]}, {records[0].model['num_layers']} layers" if len(models) == 1 else "Comparison"
    title += f", pruned by {pruners[0]}" if len(pruners) == 1 else ""
    names, varied = headline_names(records), _varied_settings(records)
    marked = marks(records, names)
    table = _table(title, notes(records, names, marked))
    columns = ["model", "pruner", "removed layers", "patch", "settings"]
    alike = {"model": len(models) == 1, "pruner": len(pruners) == 1, "settings": not varied}
    shown = [column for column in columns if not alike.get(column)]
    for column in shown:
        table.add_column(column)
    for name in names:
        table.add_column(label(name, records), justify="right")
        table.add_column("retained %" if _is_retained(records, name) else "against dense", justify="right")
    table.add_column("parameters", justify="right")
    seen: set[tuple[str, ...]] = set()
    rows: list[tuple[tuple[Any, ...], list[str]]] = []  # each with the section it belongs to
    for record in records:
        for stage in (stage for stage in STAGES if stage in record.metrics):
            cells = (record.model["name"], *_what(record, stage), _settings(record, stage, varied))
            if cells in seen:
                continue
            seen.add(cells)
            row = [cell for column, cell in zip(columns, cells, strict=True) if column in shown]
            if stage == "dense":
                row[len(models) > 1] = "dense"  # in the first column that says what was done to the model
            row += [*_metric_cells(records, record, stage, names, marked), _count_and_change(record, stage)]
            rows.append((_order(record)[: 1 if stage == "dense" else 3], row))
    for _, section in groupby(sorted(rows, key=itemgetter(0)), key=itemgetter(0)):
        for _, row in section:
            table.add_row(*row)
        table.add_section()
    return table


def layer_list(layers: Sequence[int]) -> str:
    """Layers as ranges.

    >>> layer_list([11, 13, 12, 20])
    '11-13, 20'
    """
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _table(title: str, lines: Sequence[str] = ()) -> Table:
    caption = "\n".join(lines) or None
    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")


def _is_retained(records: Sequence[Record], name: str) -> bool:
    return any(name in kept.get("mean_of_ratios", {}) for record in records for kept in record.retained.values())


def _metric_cells(
    records: Sequence[Record], record: Record, stage: str, names: Sequence[str], marked: Mapping[str, str]
) -> list[str]:
    dense, cells = record.metrics.get("dense", {}), []
    for name in names:
        metric = record.metrics[stage].get(name)
        mark = f" {marked[how]}" if metric and (how := how_measured(metric)) in marked else ""
        if _is_retained(records, name):  # the interval says more than the standard error
            cells.append(value_text(metric and {**metric, "stderr": None}) + mark)
            cells.append("100" if stage == "dense" else retained_text(record, stage, name))
        else:
            cells.append(value_text(metric) + mark)
            cells.append("" if stage == "dense" else versus_text(metric, dense.get(name)))
    return cells


def _count_and_change(record: Record, stage: str) -> str:
    count, change = _parameters(record, stage)
    return f"{count} ({change})" if change else count


def num_parameters(record: Record, stage: str) -> int:
    """Parameters that a stage's model has."""
    count: int = record.model["num_parameters"]
    if stage != "dense":
        count -= record.pruning["num_parameters_removed"]
    if stage == "patched":
        count += record.patch["num_parameters"]
    if stage == "distilled" and record.distillation:
        count += record.distillation["num_parameters"]
    return count


def _parameters(record: Record, stage: str) -> tuple[str, str]:
    """Number of parameters, and its change against dense."""
    count, dense = num_parameters(record, stage), record.model["num_parameters"]
    return f"{count / 1e6:,.1f} M", "" if stage == "dense" else f"{count / dense - 1:+.1%}"


def _what(record: Record, stage: str) -> tuple[str, str, str]:
    if stage == "dense":
        return "", "", ""
    patch = "none" if stage == "pruned" else record.patch["method"]
    if stage == "distilled" and record.distillation:
        patch += f" + {record.distillation['method']}"
    return record.pruning["method"], layer_list(record.pruning["removed_layers"]), patch


def _varied_settings(records: Sequence[Record]) -> list[str]:
    """Settings in which runs with the same model, pruner, size, patch and distillation differ."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for record in records:
        same = (record.model["name"], *_what(record, "distilled")[::2], str(len(record.pruning["removed_layers"])))
        groups.setdefault(same, []).append(settings(record))
    varied = {key for alike in groups.values() for key in telling(alike)}
    return sorted(varied - {"output_dir", "group", "cache_dir", "force"})


def _settings(record: Record, stage: str, varied: Sequence[str]) -> str:
    """Those of the varied settings that matter to a stage."""
    training = ("distill.", "distillation.")
    past = {
        "dense": ("patch.", "pruner.", "calibration.", "seed", *training),
        "pruned": ("patch.", *training),
        "patched": training,
    }.get(stage, ())
    known = settings(record)
    return escape(", ".join(f"{key}={known[key]}" for key in varied if key in known and not key.startswith(past)))


def _order(record: Record) -> tuple[Any, ...]:
    pruning = record.pruning
    return (
        record.model["name"],
        pruning["method"],
        len(pruning["removed_layers"]),
        record.patch["method"] != "none",
    )
