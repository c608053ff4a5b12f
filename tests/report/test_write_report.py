"""What a report writes, where, and what it leaves alone."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from matplotlib.figure import Figure
from report_runs import entries, metric, record, write, write_grid
from rich.console import Console
from safetensors.numpy import save_file

from linearpatch.errors import DataError, StorageError
from linearpatch.report.figures.costs import against_costs, pareto
from linearpatch.report.figures.layers import layer_scores
from linearpatch.report.figures.patches import fits
from linearpatch.report.figures.quality import against_layers
from linearpatch.report.figures.style import log_scale, look
from linearpatch.report.layouts import layer_sets
from linearpatch.report.reading import Run, read_runs
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


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    write_report([runs], tmp_path / "one")
    write_report([runs], tmp_path / "two")
    for name in files_of(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.slow
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
    with pytest.raises(StorageError, match="isn't part of a report"):
        write_report([runs], output)
    assert files_of(output) == ["report.md"]


@pytest.mark.slow
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
        (drawing,) = against_layers(entries(*records), "pruner")
        drawn = [line.get_xydata()[:, 1].tolist() for line in drawing.figure.axes[0].get_lines()]
        return sorted(values for values in drawn if len(set(values)) > 1)

    def fitted(patched, removed, ridge=0.1):
        return record(removed=removed, config={"patch": {"ridge": ridge}}, dense=10.0, patched=patched)

    alone = [fitted(14.0, (3, 4)), fitted(16.0, (3, 4, 5))]
    assert lines(*alone) == [[14.0, 16.0]]
    assert lines(*alone, fitted(13.0, (3, 4), 0.2), fitted(15.0, (3, 4, 5), 0.2)) == [[13.0, 15.0], [14.0, 16.0]]


def test_one_axis_has_a_line_for_each_recipe_and_panels_only_on_request():
    runs = [record(pruner, removed=range(3, 3 + n), dense=10.0, pruned=12.0 + n, patched=11.0 + n)
            for pruner in ("sleb", "tail") for n in (2, 4)]  # fmt: skip
    (drawing,) = against_layers(entries(*runs))
    (axis,) = drawing.figure.axes
    drawn = [one for one in axis.get_lines() if len(one.get_xdata()) == 2 and len(set(one.get_ydata())) == 2]
    assert len(drawn) == 4
    assert len({(one.get_color(), one.get_marker()) for one in drawn}) == 4
    assert [tick for tick in axis.get_xticks() if tick != int(tick)] == []
    assert 10.0 in [one.get_ydata()[0] for one in axis.get_lines()]  # dense
    names = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
    assert names == {"SLEB", "SLEB + rotate", "Tail", "Tail + rotate", "dense"}
    (faceted,) = against_layers(entries(*runs), "pruner")
    assert [axis.get_title() for axis in faceted.figure.axes] == ["sleb", "tail"]


def test_recipes_of_one_size_are_dots_the_best_on_top():
    (drawing,) = against_layers(entries(record("sleb"), record("tail", pruned=30.0, patched=12.0)))
    (axis,) = drawing.figure.axes
    assert [one.get_text() for one in axis.get_yticklabels()] == ["Tail + rotate", "SLEB + rotate", "SLEB", "Tail"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]


def test_of_very_many_recipes_the_best_have_colours_and_the_others_are_said_to_be_grey():
    runs = [record(f"p{at}", "none", removed=range(n), dense=10.0, pruned=11.0 + at + n)
            for at in range(20) for n in (2, 3)]  # fmt: skip
    (drawing,) = against_layers(entries(*runs))
    assert len(drawing.figure.legends[0].get_texts()) == 13
    assert "grey: 8 more recipes" in drawing.caption
    assert len({(one.color, one.marker) for one in map(look, range(64))}) == 64


def test_the_best_of_any_size_has_a_colour_however_bad_it_is_at_the_largest():
    runs = [record(f"p{at}", "none", removed=range(n), dense=10.0, pruned=11.0 + at + n)
            for at in range(20) for n in (2, 3)]  # fmt: skip
    early = [
        record("early", "none", removed=range(n), dense=10.0, pruned=quality) for n, quality in ((2, 10.5), (3, 90.0))
    ]
    (drawing,) = against_layers(entries(*runs, *early))
    names = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert names == [*(f"p{at}" for at in range(11)), "early", "dense"]


def test_logarithmic_axes_have_two_numbers_however_little_they_span():
    for low, high in ((500.1, 500.9), (10.0, 11.0), (10.0, 40.0), (1.0, 1e5), (0.002, 0.009)):
        axis = Figure().subplots()
        axis.plot([0, 1], [low, high])
        log_scale(axis, "y")
        bottom, top = axis.get_ylim()
        shown = [tick for tick in axis.yaxis.get_major_locator()() if bottom <= tick <= top]
        assert len(shown) >= 2, (low, high)


def test_the_front_is_what_nothing_beats_in_both():
    generator = numpy.random.default_rng(0)
    points = [tuple(point) for point in generator.integers(0, 30, (60, 2)).tolist()]

    def is_beaten(point):
        return any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in points)

    front = pareto(points, lower_is_better=True)
    assert {points[at] for at in front} == {point for point in points if not is_beaten(point)}


@pytest.mark.slow
def test_quality_is_drawn_against_each_cost_that_differs(tmp_path):
    write_grid(tmp_path / "runs", pruners=("sleb", "shortgpt"), patches=("none", "rotate"))
    report = write_report([tmp_path / "runs"], tmp_path / "report")
    assert "figures/costs_perplexity_wikitext2_tiny.png" in report.files
    found = entries(*(run.record for run in read_runs([tmp_path / "runs"]).runs))
    (drawing,) = against_costs(found)
    assert [axis.get_xlabel() for axis in drawing.figure.axes] == ["Parameters, M", "Decode, ms a token", "Memory, MiB"]


def test_a_row_of_the_map_is_a_set_of_layers_with_all_that_remove_it():
    found = entries(
        record("sleb", "rotate"), record("sleb", "lstsq"), record("shortgpt"), record("tail", removed=(8, 9, 10)),
        record("random", seed=0, removed=(1, 2, 3)), record("random", seed=1, removed=(2, 3, 4)),
    )  # fmt: skip
    assert layer_sets(found) == [
        ((1, 2, 3), "Random, seed 0"),
        ((2, 3, 4), "Random, seed 1"),
        ((3, 4, 9), "ShortGPT, SLEB"),
        ((8, 9, 10), "Tail"),
    ]


def test_scores_whose_finalists_were_ranked_again_say_so():
    one = record("patch_aware")
    finalists = [{"removed": [3, 4, 5]}, {"removed": [7, 8, 9]}]
    scores = LayerScores("held-out NLL when patched", "window", [1.0 + at for at in range(10)], finalists=finalists)
    one = replace(one, pruning=replace(one.pruning, scores=scores))
    (drawing,) = layer_scores([Run(one, Path("x"), ())])
    assert "ringed: finalists" in drawing.caption
    (axis,) = drawing.figure.axes
    assert "finalists ranked again" in axis.get_title()
    assert list(axis.get_lines()[0].get_xdata()) == [3, 7]


def test_fits_have_titled_axes_and_a_line_at_one():
    (drawing,) = fits([Run(record(patch="lstsq"), Path("x"), ())])
    (axis,) = drawing.figure.axes
    assert axis.get_xlabel()
    assert axis.get_ylabel()
    assert [1, 1] in [list(one.get_xdata()) for one in axis.get_lines()]
