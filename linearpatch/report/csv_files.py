"""Tables and rows as CSV."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from linearpatch.report.reading import Run
from linearpatch.report.rows import Row
from linearpatch.report.tables import Table
from linearpatch.text import printable


def csv_table(table: Table) -> str:
    """A table with numbers as they are, spreads and notes' letters in columns of their own where there are any."""
    content: dict[str, list[object]] = {
        head: [line.labels[at] for line in table.lines] for at, head in enumerate(table.heads)
    }
    for at, key in enumerate(table.keys or table.columns):
        cells = [line.cells[at] for line in table.lines]
        numbers = table.are_numbers[at]
        content[key] = [cell.value if numbers else cell.text for cell in cells]
        if any(cell.spread is not None for cell in cells):
            content[f"{key} sd"] = [cell.spread for cell in cells]
        if any(cell.stderr is not None for cell in cells):
            content[f"{key} stderr"] = [cell.stderr for cell in cells]
        if any(cell.mark for cell in cells):
            content[f"{key} note"] = [cell.mark for cell in cells]
    return to_csv(pandas.DataFrame(content))


def measurements(rows: Sequence[Row]) -> pandas.DataFrame:
    """Every number of every row in one tidy table: one line for each model, seed and metric."""
    lines = []
    for row in rows:
        variant = row.variant
        what = {
            "model": variant.model, "num_layers": variant.num_layers, "stage": variant.stage,
            "pruner": variant.pruner, "num_pruned_layers": variant.num_removed, "patch": variant.patch,
            "distill": variant.distill, "seed": row.seed, "settings": variant.settings_text,
            "removed_layers": " ".join(map(str, row.removed)), "num_parameters": row.num_parameters,
        }  # fmt: skip
        for name, measure in row.metrics.items():
            kept = {
                f"retained_{definition}": values[name].value
                for definition, values in row.retained.items()
                if name in values
            }
            columns = {
                "metric": name, "value": measure.value, "stderr": measure.stderr, "n": measure.n,
                "counted": measure.counted, "unit": measure.unit, "protocol": measure.protocol,
                "token_hash": measure.token_hash, "reason": measure.reason, **kept, "run": row.runs[0],
            }  # fmt: skip
            lines.append(what | columns)
    return pandas.DataFrame(lines)


def costs(runs: Sequence[Run]) -> pandas.DataFrame:
    """Seconds and peak memory of each step of each run."""
    return pandas.DataFrame(
        [
            {"run": run.record.run_id, "step": step, "seconds": seconds, "peak_memory_bytes": peaks.get(step)}
            for run in runs
            for peaks in [run.record.peak_memory_bytes]
            for step, seconds in run.record.timings_s.items()
        ]
    )


def to_csv(frame: pandas.DataFrame) -> str:
    """A table as text; a cell that a spreadsheet would take for a formula is set in quotes."""
    text = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+@-" and cell[1:] else cell)
    return printable(str(text.to_csv(index=False, lineterminator="\n")))
