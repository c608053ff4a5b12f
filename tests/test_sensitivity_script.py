"""The script beside experiments/sensitivity: effects over standard errors, what is needed, and who wins."""

import importlib.util
import sys
from pathlib import Path

import numpy
import pytest

FILE = Path(__file__).parents[1] / "experiments" / "sensitivity" / "compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("sensitivity_compare", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look up their types
        spec.loader.exec_module(module)
        yield module


def recipe(compare, name, size, **means):
    drawn = numpy.random.default_rng(0)
    return compare.Recipe(name, size, {measure: mean + drawn.normal(0, 1, 100) for measure, mean in means.items()})


def test_an_effect_is_that_of_a_paired_t_test(compare):
    from scipy import stats

    first, second = numpy.random.default_rng(1).normal([[0.0], [0.3]], 1, (2, 50))
    assert compare.effect(second - first) == pytest.approx(abs(stats.ttest_rel(second, first).statistic))
    assert compare.effect(numpy.zeros(5)) == 0


def test_neighbours_are_compared_and_the_best_is_named(compare):
    drawn = numpy.random.default_rng(2)
    noise = [drawn.normal(0, 1, 100) for _ in range(3)]
    recipes = [
        compare.Recipe(name, 5, {"ppl/a": mean + each})
        for name, mean, each in zip("abc", (0.0, 0.1, 5.0), noise, strict=True)
    ]
    found = compare.sensitivity(recipes, "ppl/a")
    expected = [compare.effect(noise[1] + 0.1 - noise[0]), compare.effect(4.9 + noise[2] - noise[1])]
    assert sorted(found.effects) == pytest.approx(sorted(expected))
    assert (found.number, found.counted, found.best) == (100, "windows", {5: "a"})
    assert found.distinguished == sum(one >= 1.96 for one in expected)
    assert found.needed == pytest.approx(100 * (2.8 / numpy.median(expected)) ** 2, abs=1)


def test_measures_that_agree_correlate(compare):
    recipes = [recipe(compare, str(n), 5, up=n, down=-n) for n in range(5)]
    assert compare.correlation(recipes, "up", "up") == pytest.approx(1)
    assert compare.correlation(recipes, "up", "down") == pytest.approx(-1)


def test_a_measure_at_its_floor_has_no_winner_and_no_correlation(compare):
    recipes = [compare.Recipe(name, 5, {"json": numpy.zeros(8), "ppl/a": numpy.arange(8.0) + at})
               for at, name in enumerate("abc")]  # fmt: skip
    floored = compare.sensitivity(recipes, "json")
    assert (floored.best, floored.needed, floored.distinguished) == ({}, numpy.inf, 0)
    assert numpy.isnan(compare.correlation(recipes, "json", "ppl/a"))


def test_a_folder_without_runs_is_named(compare, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"No completed run of a sweep in .*empty"):
        compare.main(tmp_path, tmp_path / "empty")
    with pytest.raises(SystemExit, match=r"elsewhere is no folder"):
        compare.main(tmp_path, tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match=r"Name the folder of a sweep"):
        compare.main()


@pytest.mark.slow
def test_the_whole_comparison_reads_what_runs_leave(compare, tmp_path, capsys):
    from linearpatch.cli import main

    for patch in ("none", "diag", "lstsq"):
        settings = ["debug=tiny", "tracker=none", "model=random", "pruner=tail", "num_pruned_layers=2"]
        words = [*settings, f"patch={patch}", "eval=[ppl,divergence]", f"output_dir={tmp_path}/{patch}"]
        assert main(["run", *words, f"cache_dir={tmp_path}/cache"]) == 0
    capsys.readouterr()
    compare.main(tmp_path)
    printed = capsys.readouterr().out
    assert "ppl/pydoc" in printed
    assert "of 2" in printed
    assert "divergence/pydoc/kl" in printed
