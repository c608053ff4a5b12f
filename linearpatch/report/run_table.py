"""What a person sees at the end of a run, and of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from linearpatch.report.compare import compare
from linearpatch.report.layouts import PARAMETERS, headline_columns, layers_table
from linearpatch.report.quantities import Dense, all_metrics, entries_of
from linearpatch.report.rows import merged, rows_of_run, with_distinguishing_settings
from linearpatch.report.tables import Cell, Line, Table
from linearpatch.results.display import (
    chosen,
    headline_names,
    label,
    metric_names,
    notes,
    remarks,
    retained_text,
    value_text,
    versus_text,
)
from linearpatch.results.metric import DEFINITIONS
from linearpatch.results.record import Record
from linearpatch.results.stages import STAGES
from linearpatch.text import counted, layer_list, removal_list


def run_table(record: Record) -> Table:
    """One line for each metric, one column for each stage: its value, and how far it is from dense."""
    model, pruning, patch = record.require_edit()
    pruner_choice, patch_choice = chosen(record, "pruner", pruning.method), chosen(record, "patch", patch.method)
    title = (
        f"{model.name}: {len(pruning.removed_layers)} of {model.num_layers} layers removed by {pruner_choice} "
        f"({layer_list(pruning.removed_layers)}), patch {patch_choice}"
    )
    if pruning.removed:
        title = (
            f"{model.name}: {counted(len(pruning.removed), 'sublayer')} of {model.num_layers} layers removed by "
            f"{pruner_choice} ({removal_list(pruning.removed)}), patch {patch_choice}"
        )
    if pruning.narrowed:
        share = f"{len(pruning.narrowed)} of {model.num_layers} layers narrowed by {pruning.method}"
        title = f"{model.name}: {share}, by as many parameters as {record.size} layers have"
    names = metric_names([record])
    stages = [stage for stage in STAGES if stage in record.metrics]
    columns = [column for stage in stages for column in (stage, *(["against dense"] if stage != "dense" else []))]
    lines: list[Line] = []
    for evaluation, members in groupby(names, key=lambda name: name.partition("/")[0]):
        rows = list(members)
        if len(rows) > 1:
            lines.append(_line(evaluation, [""] * len(columns), evaluation))
        for name in rows:
            short = label(name, [record])
            lines += _metric_lines(record, stages, name, short if len(rows) == 1 else f"  {short.partition('/')[2]}")
    cells = []
    for stage in stages:
        count = record.num_parameters(stage)
        cells += [f"{count / 1e6:,.1f} M"] + ([f"{count / model.num_parameters - 1:+.1%}"] if stage != "dense" else [])
    lines.append(_line("parameters", cells, "parameters"))
    return Table("run", title, ("",), tuple(columns), tuple(lines), tuple(notes([record], names)), all_right=True)


def sweep_tables(records: Sequence[Record]) -> list[Table]:
    """The models of all runs side by side, and which layers they lack; none where nothing was measured."""
    complete = [record for record in records if record.metrics and record.model and record.pruning and record.patch]
    rows = with_distinguishing_settings(merged(row for record in complete for row in rows_of_run(record)))
    entries = entries_of(rows)
    columns = [*headline_columns(all_metrics(rows), Dense.among(rows)), PARAMETERS]
    tables = (compare("runs", "Models", columns, entries, notes=remarks(complete)), layers_table(entries))
    return [table for table in tables if table]


def _metric_lines(record: Record, stages: Sequence[str], name: str, text: str) -> list[Line]:
    """A metric's line; below an average that stands for its evaluation what is retained, in each definition."""
    group = name.partition("/")[0]
    cells = []
    for stage in stages:
        metric, dense = (record.metrics.get(which, {}).get(name) for which in (stage, "dense"))
        cells += [value_text(metric)] + ([versus_text(metric, dense)] if stage != "dense" else [])
    lines = [_line(text, cells, group)]
    for definition, title in DEFINITIONS.items() if name in headline_names([record]) else ():
        if any(name in kept.get(definition, {}) for kept in record.retained.values()):
            cells = []
            for stage in stages:
                cells += ["100"] if stage == "dense" else ["", retained_text(record, stage, name, definition)]
            lines.append(_line(f"  retained, {title} %", cells, group))
    return lines


def _line(label: str, cells: Sequence[str], group: str) -> Line:
    return Line((label,), tuple(Cell(text) for text in cells), (group,))
