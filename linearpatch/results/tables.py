"""What a person sees at the end: one run's stages, or a sweep's runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from linearpatch.results.record import Record

STAGES = ("dense", "pruned", "patched", "distilled")


def run_table(record: Record) -> Table:
    """One row for each stage: its metrics, their change against dense, its parameters."""
    layers = layer_list(record.pruning["removed_layers"])
    title = (
        f"{record.model['name']}: {len(record.pruning['removed_layers'])} of {record.model['num_layers']} layers "
        f"removed by {record.pruning['method']} ({layers}), patch {record.patch['method']}"
    )
    table = _table(title, _notes([record]))
    names = metric_names([record])
    table.add_column("stage")
    _metric_columns(table, names)
    table.add_column("parameters", justify="right")
    for stage in STAGES:
        if stage in record.metrics:
            table.add_row(stage, *_metric_cells(record, stage, names), _parameters(record, stage))
    return table


def comparison_table(records: Sequence[Record]) -> Table:
    """One row for dense, one for each distinct pruned model, one for each patched model."""
    records = sorted((record for record in records if record.metrics), key=_order)
    models = list(dict.fromkeys(record.model["name"] for record in records))
    title = f"{models[0]}, {records[0].model['num_layers']} layers" if len(models) == 1 else "Comparison"
    table = _table(title, _notes(records))
    names, varied = metric_names(records), _varied_settings(records)
    columns = ["model", "pruner", "removed layers", "patch", "settings"]
    shown = [
        column for column in columns if (column != "model" or len(models) > 1) and (column != "settings" or varied)
    ]
    for column in shown:
        table.add_column(column)
    _metric_columns(table, names)
    table.add_column("parameters", justify="right")
    seen: set[tuple[str, ...]] = set()
    for record in records:
        for stage in (stage for stage in STAGES if stage in record.metrics):
            cells = (record.model["name"], *_what(record, stage), _settings(record, stage, varied))
            if cells in seen:
                continue
            if stage == "pruned" and seen:
                table.add_section()
            seen.add(cells)
            row = [cell for column, cell in zip(columns, cells, strict=True) if column in shown]
            table.add_row(*row, *_metric_cells(record, stage, names), _parameters(record, stage))
    return table


def failures_table(records: Sequence[Record]) -> Table | None:
    """One row for each run that didn't complete, or None."""
    failed = [record for record in records if record.status != "completed"]
    if not failed:
        return None
    table = _table("Not completed", None)
    for column in ("run", "status", "reason"):
        table.add_column(column)
    for record in failed:
        table.add_row(record.run_id, record.status, record.error or "")
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


def metric_names(records: Sequence[Record]) -> list[str]:
    """All metrics that some stage of some run has, in order of appearance."""
    names = (name for record in records for stage in record.metrics.values() for name in stage)
    return list(dict.fromkeys(names))


def _table(title: str, caption: str | None) -> Table:
    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")


def _metric_columns(table: Table, names: Sequence[str]) -> None:
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("× dense", justify="right")


def _metric_cells(record: Record, stage: str, names: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for name in names:
        metric = record.metrics[stage].get(name)
        value = metric and metric["value"]
        dense = record.metrics.get("dense", {}).get(name, {}).get("value")
        if metric is None:
            cells += ["", ""]
        elif value is None:
            cells += ["not finite", ""]
        else:
            spread = f" ± {metric['stderr']:,.2f}" if metric["stderr"] is not None else ""
            cells += [f"{value:,.2f}{spread}", f"{value / dense:.2f}" if dense else ""]
    return cells


def _parameters(record: Record, stage: str) -> str:
    dense = record.model["num_parameters"]
    count = dense
    if stage != "dense":
        count -= record.pruning["num_parameters_removed"]
    if stage in ("patched", "distilled"):
        count += record.patch["num_parameters"]
    return f"{count / 1e6:,.1f} M" + ("" if stage == "dense" else f" ({count / dense - 1:+.1%})")


def _what(record: Record, stage: str) -> tuple[str, str, str]:
    if stage == "dense":
        return "dense", "", ""
    patch = "none" if stage == "pruned" else record.patch["method"]
    return record.pruning["method"], layer_list(record.pruning["removed_layers"]), patch


def _varied_settings(records: Sequence[Record]) -> list[str]:
    """Settings in which runs with the same model, pruner, size and patch differ."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        same = (record.model["name"], *_what(record, "patched")[::2], str(len(record.pruning["removed_layers"])))
        groups.setdefault(same, []).append(_flat(record.config))
    varied = {
        key
        for configs in groups.values()
        for key in set().union(*configs)
        if len({str(config.get(key)) for config in configs}) > 1
    }
    return sorted(varied - {"output_dir", "group", "cache_dir"})


def _settings(record: Record, stage: str, varied: Sequence[str]) -> str:
    """Those of the varied settings that matter to a stage."""
    past = {"dense": ("patch.", "pruner.", "calibration.", "seed"), "pruned": ("patch.",)}.get(stage, ())
    config = _flat(record.config)
    return ", ".join(f"{key}={config[key]}" for key in varied if key in config and not key.startswith(past))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _order(record: Record) -> tuple[Any, ...]:
    pruning = record.pruning
    return (
        record.model["name"],
        pruning["method"],
        len(pruning["removed_layers"]),
        record.patch["method"] != "none",
    )


def _notes(records: Sequence[Record]) -> str:
    lines = [note for record in records for note in (record.model.get("note"), *record.calibration.get("notes", ()))]
    protocols = [
        f"{name}: {metric['protocol']}, {metric['n']:,} tokens"
        for record in records
        for stage in record.metrics.values()
        for name, metric in stage.items()
    ]
    return "\n".join(dict.fromkeys(line for line in (*protocols, *lines) if line))
