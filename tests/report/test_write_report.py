"""What a report writes, where, and what it leaves alone."""

import io
import json
from dataclasses import replace

import numpy
import pytest
from report_runs import entries, metric, record, write
from rich.console import Console
from safetensors.numpy import save_file

from linearpatch.errors import DataError, StorageError
from linearpatch.report.figures.quality import against_layers
from linearpatch.report.report import MANIFEST, write_report
from linearpatch.results.scores import LayerScores, SearchStep


@pytest.fixture
def runs(tmp_path):
    distilled = record(patch="lstsq", dense=10.0, pruned=20.0, patched=14.0, distilled=12.0)
    return write(tmp_path / "runs", record(), distilled)


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_tables_figures_a_document_and_a_page(runs, tmp_path):
    report = write_report([runs], tmp_path / "report", title="My runs")
    found = files_of(tmp_path / "report")
    assert found == sorted([*report.files, MANIFEST])
    for name in ("report.md", "report.html", "tables/measurements.csv", "tables/costs.csv", "tables/perplexity.tex",
                 "figures/perplexity_wikitext2_tiny.pdf", "figures/layers_tiny.png", "figures/scores_tiny.png",
                 "figures/fits_tiny.png", "figures/distillation_tiny.png"):  # fmt: skip
        assert name in found
    assert not any("speed" in name or "retained" in name or "qa" in name for name in found)
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# My runs\n")
    for name in (file for file in found if file.endswith(".png")):
        assert f"]({name})" in text
    assert report.num_runs == 2


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    write_report([runs], tmp_path / "one")
    write_report([runs], tmp_path / "two")
    for name in files_of(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_second_report_takes_the_place_of_the_first_and_of_nothing_else(runs, tmp_path):
    output = tmp_path / "report"
    write_report([runs], output)
    (output / "notes.txt").write_text("mine")
    (output / "figures" / "mine.png").write_text("mine")
    only = write(tmp_path / "only", record(patch="none", pruned=20.0))
    write_report([only], output)
    found = files_of(output)
    assert "figures/distillation_tiny.png" not in found
    assert {"notes.txt", "figures/mine.png"} <= set(found)
    assert set(json.loads((output / MANIFEST).read_text())["files"]) | {
        "notes.txt",
        "figures/mine.png",
        MANIFEST,
    } == set(found)


def test_files_that_no_report_wrote_are_not_overwritten(runs, tmp_path):
    output = tmp_path / "report"
    output.mkdir()
    (output / "report.md").write_text("mine")
    with pytest.raises(StorageError, match="no report wrote it"):
        write_report([runs], output)
    assert files_of(output) == ["report.md"]


def test_a_manifest_removes_nothing_outside(runs, tmp_path):
    output = tmp_path / "report"
    write_report([runs], output)
    (tmp_path / "precious").write_text("mine")
    names = json.loads((output / MANIFEST).read_text())["files"]
    (output / MANIFEST).write_text(json.dumps({"files": [*names, "../precious"]}))
    write_report([runs], output)
    assert (tmp_path / "precious").exists()


def test_nothing_is_written_where_something_is_wrong(runs, tmp_path):
    (tmp_path / "published.csv").write_text("no,columns\n")
    with pytest.raises(DataError):
        write_report([runs], tmp_path / "report", published=tmp_path / "published.csv")
    with pytest.raises(StorageError):
        write_report([tmp_path / "nothing"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_runs_that_failed_are_told_in_the_document_and_the_terminal(runs, tmp_path):
    failed = record(patch="diag")
    failed.status, failed.error = "failed", "no [bold]such|corpus"
    write(runs, failed)
    report = write_report([runs], tmp_path / "report")
    assert "no [bold]such\\|corpus" in (tmp_path / "report" / "report.md").read_text()
    console = Console(file=io.StringIO(), width=160)
    for table in report.terminal_tables():
        console.print(table)
    printed = console.file.getvalue()
    assert "no [bold]such|corpus" in printed
    assert "14.00" in printed


def test_only_failed_runs_make_a_report_of_failures(tmp_path):
    failed = record()
    failed.status, failed.error = "failed", "no such corpus"
    report = write_report([write(tmp_path / "runs", failed)], tmp_path / "report")
    assert report.num_runs == 0
    assert "no such corpus" in (tmp_path / "report" / "report.md").read_text()


def test_profiles_are_drawn_from_the_arrays_beside_a_record(runs, tmp_path):
    streams = numpy.array([0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12])
    arrays = {f"pruned/{name}": numpy.linspace(1, 0.5, 11).astype("float32")
              for name in ("magnitude_ratio", "cosine_to_dense", "error_to_dense")}  # fmt: skip
    one = record()
    save_file({"pruned/streams": streams, **arrays}, runs / one.run_id / "diagnostics.safetensors")
    report = write_report([runs], tmp_path / "report")
    assert f"figures/streams_{one.run_id}.png" in report.files


def test_a_search_is_drawn_and_other_scores_do_no_harm(tmp_path):
    search, odd = record(), record(pruner="mine")
    losses = {str(layer): 3.0 + layer for layer in range(12)}
    scores = LayerScores("NLL", steps=[SearchStep(3, losses)] * 3)
    search.pruning = replace(search.pruning, scores=scores)
    odd.pruning = replace(odd.pruning, scores={"values": "none of your business"})
    report = write_report([write(tmp_path / "a", search)], tmp_path / "report")
    assert "figures/scores_tiny.png" in report.files
    told = (tmp_path / "report" / "report.md").read_text()
    assert "\n1 run of tiny." in told
    assert "×: what a step of the search removes" in told
    assert "dark bars" not in told
    report = write_report([write(tmp_path / "b", odd)], tmp_path / "other")
    assert "figures/scores_tiny.png" not in report.files
    assert "figures/layers_tiny.png" in report.files


def test_names_that_are_paths_stay_inside(tmp_path):
    one = record(model="../../etc/passwd $x^2$ {}", dense={"../../x/paper": metric(0.5, unit="share")})
    one.run_id = "odd"
    report = write_report([write(tmp_path / "runs", one)], tmp_path / "report")
    inside = (tmp_path / "report").resolve()
    assert all((inside / name).resolve().is_relative_to(inside) for name in report.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


def test_a_line_joins_sizes_with_the_same_settings():
    def lines(*records):
        (drawing,) = against_layers(entries(*records))
        drawn = [line.get_xydata()[:, 1].tolist() for line in drawing.figure.axes[0].get_lines()]
        return sorted(values for values in drawn if len(set(values)) > 1)

    def fitted(patched, removed, ridge=0.1):
        return record(removed=removed, config={"patch": {"ridge": ridge}}, dense=10.0, patched=patched)

    alone = [fitted(14.0, (3, 4)), fitted(16.0, (3, 4, 5))]
    assert lines(*alone) == [[14.0, 16.0]]
    assert lines(*alone, fitted(13.0, (3, 4), 0.2), fitted(15.0, (3, 4, 5), 0.2)) == [[13.0, 15.0], [14.0, 16.0]]
