"""From folders of runs to a report: tables, figures, a document and a page."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table as RichTable

from linearpatch.errors import StorageError, require_choice
from linearpatch.report import FACETS
from linearpatch.report.csv_files import costs, csv_table, measurements, to_csv
from linearpatch.report.differences import Differences, Ties, compare_all
from linearpatch.report.document import document
from linearpatch.report.figures.all import MOST_CHARACTERS, draw
from linearpatch.report.latex import latex_table
from linearpatch.report.layouts import ablation_table, layers_table, paper_tables, retained_table
from linearpatch.report.markdown import escape, markdown_table
from linearpatch.report.matrices import differences_frame, matrix_tables
from linearpatch.report.page import write_page
from linearpatch.report.published import Published, read_published
from linearpatch.report.quantities import Entry, entries_of
from linearpatch.report.reading import Failure, ReadRuns, read_runs
from linearpatch.report.rows import Row, merged, with_distinguishing_settings
from linearpatch.report.samples import Samples
from linearpatch.report.tables import Table
from linearpatch.report.terminal import failures_table, rich_table
from linearpatch.report.with_published import beside_table
from linearpatch.results.display import remarks
from linearpatch.storage.files import make_folder
from linearpatch.storage.temporary import remove_leftovers, temporary_path
from linearpatch.text import counted

log = logging.getLogger(__name__)

MANIFEST = ".linearpatch-report.json"  # which files of the folder are a report's


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: Where it lies.
        files: Below it, by name.
        num_runs: Runs that it compares.
        failures: Runs that it leaves out.
        tables: All tables, the most telling first.
    """

    folder: Path
    files: tuple[str, ...]
    num_runs: int
    failures: tuple[Failure, ...]
    tables: tuple[Table, ...]

    def terminal_tables(self, most: int = 2) -> list[RichTable]:
        """The first tables as a terminal shows them, and what was left out."""
        shown = [rich_table(table, f"tables/{table.name}.md") for table in self.tables[:most]]
        return [*shown, failures_table(self.failures)] if self.failures else shown


@dataclass(frozen=True)
class Comparison:
    """Runs, side by side.

    Attributes:
        selected: What was read.
        rows: One for each model and seed.
        entries: One for each model, all its seeds together.
        tables: The tables that have a number.
        differences: Between any two entries of a model, in each headline metric.
    """

    selected: ReadRuns
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    tables: tuple[Table, ...]
    differences: tuple[Differences, ...]


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str | None = None,
    published: Path | None = None,
    facet: str | None = None,
) -> Report:
    """Compare all runs in some folders and below them.

    Args:
        folders: Of runs or sweeps.
        output: Where the report goes. Files of an earlier report are replaced, all others stay.
        title: Its head; None names the models.
        published: Published figures to stand beside the measured ones, see `read_published`.
        facet: Draw a panel of quality against layers for each value of this, one of `FACETS`.

    Raises:
        StorageError: there is no record, or the output can't be written or holds files of the same names that no
            report wrote.
        DataError: the published figures can't be read.
        ConfigError: there is no such facet.
    """
    if facet is not None:
        require_choice("facet", facet, FACETS)
    earlier = _earlier_files(output)
    figures = read_published(published) if published else []
    comparison = compare_runs(read_runs(folders), figures)
    title = title or default_title(comparison)
    files = _files(title, comparison, facet)
    _replace_files(output, files, earlier)
    left_out = f" ({len(comparison.selected.failures)} left out)" if comparison.selected.failures else ""
    log.info("the report of %s%s is in %s", counted(len(comparison.selected.runs), "run"), left_out, output)
    return Report(
        output, tuple(sorted(files)), len(comparison.selected.runs), comparison.selected.failures, comparison.tables
    )


def compare_runs(selected: ReadRuns, published: Sequence[Published] = ()) -> Comparison:
    """Put runs side by side."""
    rows = with_distinguishing_settings(merged(row for run in selected.runs for row in run.rows))
    entries = entries_of(rows)
    caveats = tuple(remarks([run.record for run in selected.runs]))
    differences = compare_all(entries, Samples(selected.runs))
    ties = Ties(entries, differences)
    tables = [replace(table, notes=(*table.notes, *caveats)) for table in paper_tables(entries, published, ties)]
    tables += matrix_tables(entries, differences)
    more = (
        beside_table(entries, published),
        retained_table(entries),
        ablation_table(entries, ties),
        layers_table(entries),
    )
    tables += [table for table in more if table]
    return Comparison(selected, tuple(rows), tuple(entries), tuple(tables), tuple(differences))


def _files(title: str, comparison: Comparison, facet: str | None) -> dict[str, bytes]:
    """Every file of the report, by its path in the folder."""
    selected, tables = comparison.selected, _with_file_names(comparison.tables)
    drawings = draw(comparison.entries, selected.runs, facet)
    page = write_page(title, comparison.entries, selected, tables, comparison.differences, drawings)
    files = {"report.md": document(title, selected, tables, drawings), "report.html": page}
    for table in tables:
        files[f"tables/{table.name}.md"] = f"# {escape(table.title)}\n\n{markdown_table(table)}"
        files[f"tables/{table.name}.tex"] = latex_table(table)
        files[f"tables/{table.name}.csv"] = csv_table(table)
    files["tables/measurements.csv"] = to_csv(measurements(comparison.rows))
    files["tables/costs.csv"] = to_csv(costs(selected.runs))
    if comparison.differences:
        files["tables/differences.csv"] = to_csv(differences_frame(comparison.entries, comparison.differences))
    content = {name: text.encode() for name, text in files.items()}
    for drawing in drawings:
        content |= {f"figures/{drawing.name}.png": drawing.png, f"figures/{drawing.name}.pdf": drawing.pdf}
    return content


def _earlier_files(output: Path) -> set[str]:
    """Files that an earlier report wrote there.

    Raises:
        StorageError: the output is a file, or holds files of a report's names that none wrote.
    """
    if output.exists() and not output.is_dir():
        raise StorageError(f"{output} is a file. Choose a folder for the report.")
    earlier: set[str] = set()
    manifest = output / MANIFEST
    if manifest.exists():
        try:
            earlier = {str(name) for name in json.loads(manifest.read_text())["files"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{manifest} can't be read: {error}. Remove it and its report.") from error
    for name in ("report.md", "report.html", "tables", "figures"):
        place = output / name
        own = name in earlier or any(file.startswith(f"{name}/") for file in earlier)
        if place.exists() and not own:
            raise StorageError(f"{place} exists and isn't part of a report. Choose another folder, or move it.")
    return earlier


def _replace_files(output: Path, files: Mapping[str, bytes], earlier: set[str]) -> None:
    """Write all files aside, then put each in its place; files of an earlier report that are no more go.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    make_folder(output)
    remove_leftovers(output)
    try:
        with _scratch_folder(output) as scratch:
            for name, content in files.items():
                file = scratch / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            manifest = scratch / MANIFEST
            manifest.write_text(json.dumps({"files": sorted(files)}, indent=1))
            for name in [*files, MANIFEST]:
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).replace(output / name)
        inside = output.resolve()
        for name in sorted(earlier - set(files)):
            file = output / name
            if file.resolve().is_relative_to(inside):  # a manifest is a file like any other
                file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"Can't write the report to {output}: {error}. Free some space or choose another."
        ) from error


@contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    folder = temporary_path(output / "report")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def default_title(comparison: Comparison) -> str:
    """The head of a report: its models."""
    models = list(dict.fromkeys(run.model.name for run in comparison.selected.runs))
    return f"LinearPatch: {', '.join(models[:3])}{' and more' if len(models) > 3 else ''}" if models else "LinearPatch"


def _with_file_names(tables: Sequence[Table]) -> list[Table]:
    """Tables with names that any system takes, none twice; evaluations may be called anything."""
    named: dict[str, Table] = {}
    for table in tables:
        name = base = re.sub(r"[^A-Za-z0-9_.-]+", "_", table.name).strip("._")[:MOST_CHARACTERS] or "table"
        number = 2
        while name in named or name in ("measurements", "costs", "differences"):
            name, number = f"{base}_{number}", number + 1
        named[name] = replace(table, name=name)
    return list(named.values())
