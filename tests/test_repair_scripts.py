"""The scripts beside experiments/repair_test: ratios of geometric means, from losses of windows; the figure."""

import csv
import importlib.util
import math
import shutil
from pathlib import Path

import numpy
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "repair_test"
RECOMMENDED = ("patch_aware", "5", "ppl/wikitext2_v1")


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compare():
    return script("compare")


def test_a_ratio_is_that_of_geometric_means_over_sizes_and_seeds(compare):
    drawn = numpy.random.default_rng(0)
    losses = {
        (recipe, size, seed): drawn.normal(level + size / 10, 0.3, 40)
        for recipe, level in ((compare.MINE, 3.0), ("other", 3.5))
        for size in compare.SIZES
        for seed in (0, 1)
    }

    def perplexity(recipe):
        values = [math.exp(found.mean()) for (name, _, _), found in losses.items() if name == recipe]
        return math.prod(values) ** (1 / len(values))

    mean, ratio, interval = compare.summary(losses, "other")
    assert float(mean) == pytest.approx(perplexity("other"), abs=0.01)
    assert float(ratio) == pytest.approx(perplexity(compare.MINE) / perplexity("other"), abs=0.001)
    low, high = (float(end) for end in interval.strip("[]").split(", "))
    assert low < float(ratio) < high
    mean, ratio, _ = compare.summary(losses, compare.MINE)
    assert (mean, ratio) == (f"{perplexity(compare.MINE):.2f}", "1")
    alone = {key: found for key, found in losses.items() if key[2] == 0 or key[0] == compare.MINE}
    assert compare.summary(alone, "other") == compare.summary(
        {key: found for key, found in losses.items() if key[2] == 0}, "other"
    )  # the seeds that both have
    del alone["other", 7, 0]
    assert compare.summary(alone, "other") == ("", "", "")


def test_the_whole_comparison_reads_what_runs_leave(compare, tmp_path, capsys, monkeypatch):
    from linearpatch.cli import main

    monkeypatch.setattr(compare, "METRIC", "ppl/pydoc")
    monkeypatch.setattr(compare, "SIZES", (2,))
    monkeypatch.setattr(compare, "MINE", "tail + lstsq")
    for patch in (["none"], ["lstsq", "patch.ridge=0.01"]):
        settings = ["debug=tiny", "tracker=none", "model=random", "pruner=tail", "num_pruned_layers=2"]
        words = [*settings, f"patch={patch[0]}", *patch[1:], f"output_dir={tmp_path}/{patch[0]}"]
        assert main(["run", *words, f"cache_dir={tmp_path}/cache"]) == 0
    capsys.readouterr()
    compare.main(tmp_path)
    printed = capsys.readouterr().out
    assert "tail +" in printed
    assert "[" in printed


def test_the_figure_draws_the_means_of_the_committed_table(tmp_path):
    draw = script("draw")
    with (FOLDER / "report" / "tables" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    left, right = draw.draw(rows).axes
    line = left.lines[1 + list(draw.RECIPES.values()).index("recommended")]
    wanted = [
        float(row["value"])
        for row in rows
        if (row["pruner"], row["num_pruned_layers"], row["metric"], row["stage"]) == (*RECOMMENDED, "patched")
        and "mixture" not in row["settings"]
    ]
    assert len(wanted) == 3
    assert dict(zip(*line.get_data(), strict=True))[5] == pytest.approx(sum(wanted) / 3)
    assert all(len(axis.lines) == 1 + len(draw.RECIPES) for axis in (left, right))
    shutil.copytree(FOLDER / "report" / "tables", tmp_path / "tables")
    (tmp_path / "figures").mkdir()
    draw.main(tmp_path)
    assert (tmp_path / "figures" / "recipes.png").read_bytes().startswith(b"\x89PNG")
