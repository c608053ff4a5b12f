"""Every size from one process: the records of the runs alone, and recommendations against direct computation."""

import json
from pathlib import Path

import numpy
import pytest
from small_runs import result

import linearpatch as lp
from linearpatch.cli import main
from linearpatch.cli.frontier import sizes_from
from linearpatch.errors import ConfigError
from linearpatch.frontiers.losses import Measure, Point
from linearpatch.frontiers.recommendation import knee, within
from linearpatch.frontiers.running import recipes_of
from linearpatch.results.questions import Answers

COMMON = ("debug=tiny", "model=random", "tracker=none", "eval=[ppl]", "model.settings.num_hidden_layers=6")
SAME = ("run_id", "status", "model", "calibration", "pruning", "patch", "metrics", "retained", "budget")


def alone(folder, *words):
    assert main(["run", *words, f"output_dir={folder}"]) == 0
    return result(folder)


def parts(record):
    return {name: record[name] for name in SAME}


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            ("pruner=patch_aware", "patch=refit_auto", "calibration.held_out_blocks=2"), marks=pytest.mark.slow
        ),
        pytest.param(
            (
                "pruner=patch_aware",
                "pruner.noise=3",
                "pruner.finalists=3",
                "pruner.rivals=[streamline,shortgpt]",
                "patch=refit_auto",
                "calibration.held_out_blocks=2",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("pruner=patch_aware", "pruner.search=greedy", "patch=lstsq", "calibration.held_out_blocks=2"),
            marks=pytest.mark.slow,
        ),
        ("pruner=sleb", "patch=rotate"),
        pytest.param(("pruner=shortgpt", "pruner.unit=attention", "patch=none"), marks=pytest.mark.slow),
    ],
    ids=["windows", "races", "greedy", "sleb", "attentions"],
)
def test_records_are_those_of_the_runs_alone(recipe):
    """Bit for bit, though each size comes after others in one process."""
    words = [*COMMON, *recipe]
    assert main(["frontier", *words, "--sizes", "1-3", "output_dir=all", "cache_dir=first"]) == 0
    found = [result(file.parent) for file in Path("all").glob("*/result.json")]
    number = "num_pruned" if "pruner.unit=attention" in recipe else "num_pruned_layers"
    together = {record["config"][number]: record for record in found}
    assert set(together) == {1, 2, 3}
    for n in (1, 2, 3):
        one = alone(f"alone{n}", *words, f"{number}={n}", f"cache_dir=second{n}")
        assert parts(together[n]) == parts(one)


@pytest.fixture
def two_recipes():
    assert main(["frontier", *COMMON, "pruner=streamline", "patch=none,lstsq", "--sizes", "1,2,4", "output_dir=both",
                 "--within", "0.05"]) == 0  # fmt: skip
    return json.loads(Path("both/frontier.json").read_text())


@pytest.mark.slow
def test_several_recipes_their_files_and_resuming(two_recipes, capsys):
    assert [recipe["name"] for recipe in two_recipes["recipes"]] == ["patch=none", "patch=lstsq"]
    for recipe in two_recipes["recipes"]:
        assert [size["n"] for size in recipe["sizes"]] == [1, 2, 4]
        for size in recipe["sizes"]:
            record = result(f"both/{size['run_id']}")
            stage = "patched" if recipe["name"] == "patch=lstsq" else "pruned"
            dense, value = (record["metrics"][which]["ppl/pydoc"]["value"] for which in ("dense", stage))
            assert size["loss"] == pytest.approx(value / dense - 1)
            low, high = size["interval"]
            assert low <= size["loss"] <= high
    assert Path("both/frontier.png").stat().st_size > 10_000
    assert Path("both/frontier.csv").read_text().count("\n") == 7
    written = {path: path.stat().st_mtime_ns for path in Path("both").glob("*/result.json")}
    found = lp.frontier(*COMMON, "pruner=streamline", "patch=none,lstsq", "output_dir=both", sizes=[1, 2, 4, 5])
    again = {path: path.stat().st_mtime_ns for path in Path("both").glob("*/result.json")}
    assert written.items() <= again.items()  # what was complete isn't run again
    assert len(again) == 8
    assert len(found.records) == 8
    assert main(["status", "both"]) == 0
    capsys.readouterr()
    assert main(["frontier", *COMMON, "--within", "0.05", "pruner=streamline", "patch=none,lstsq", "output_dir=both",
                 "--sizes", "1,2,4,5"]) == 0  # fmt: skip
    table = " ".join(capsys.readouterr().out.split())
    assert "within 5.0 %" in table
    assert "at the knee" in table
    assert "patch=lstsq" in table


def test_what_cannot_be_is_rejected_before_anything_runs(said):
    for words, reason in (
        (["num_pruned_layers=3"], "--sizes 1-9"),
        (["budget=parameters"], "--sizes 1-9"),
        (["--sizes", "0-3"], "such as 1-9 or 3,5,7"),
        (["--sizes", "3-9"], "num_pruned_layers is 6, but 5"),
        (["--within", "-1"], "--within is -1"),
        (["pruner=nothing"], "Allowed"),
    ):
        assert main(["frontier", *COMMON, "output_dir=none", *words]) == 1
        assert reason in said()
    assert not Path("none").exists()


@pytest.mark.slow
def test_a_metric_that_was_not_measured_is_rejected(said):
    words = [*COMMON, "--sizes", "1", "output_dir=one", "pruner=tail", "patch=none"]
    assert main(["frontier", *words, "--metric", "ppl/other"]) == 1
    assert "Allowed: ppl/pydoc" in said()
    assert main(["frontier", *words, "eval=[]", "output_dir=other"]) == 1
    assert "Add one, such as eval=[ppl]" in said()
    assert main(["frontier", *words, "stages=[dense]", "output_dir=dense"]) == 1
    assert "keep dense and patched in stages" in said()


def test_recipes_and_sizes():
    recipes = recipes_of(["pruner=sleb,tail", "patch=none,lstsq", "seed=1"])
    assert [recipe.name for recipe in recipes] == [
        "pruner=sleb patch=none", "pruner=sleb patch=lstsq", "pruner=tail patch=none", "pruner=tail patch=lstsq",
    ]  # fmt: skip
    assert all("seed=1" in recipe.overrides for recipe in recipes)
    assert [recipe.name for recipe in recipes_of(["pruner=sleb"])] == [""]
    assert sizes_from("1-3,7,2") == [1, 2, 3, 7]
    with pytest.raises(ConfigError, match="such as 1-9"):
        sizes_from("3-1")


def points(losses, draws=None):
    return [Point(at + 1, None, loss, None if draws is None else draws[at]) for at, loss in enumerate(losses)]


DIVERGENCE = Measure.of("divergence/x/kl")


def test_the_knee_is_farthest_below_the_line():
    losses = [0.1, 0.2, 0.3, 1.0, 2.0, 4.0]
    below = [4.0 * (at + 1) / 6 - loss for at, loss in enumerate(losses)]
    assert knee(points(losses), DIVERGENCE).n == 1 + int(numpy.argmax(below)) == 3
    assert knee(points(losses[:2]), DIVERGENCE) is None
    logs = numpy.expm1(losses)  # perplexities count by their logarithms
    assert knee(points(list(logs)), Measure.of("ppl/x")).n == 3


def test_the_most_layers_within_a_bound():
    found = within(points([0.01, 0.02, 0.2, 0.05]), 0.1)  # what comes after a size that isn't within doesn't count
    assert (found.n, found.loss, found.sizes, found.certain) == (2, 0.02, None, None)
    assert within(points([0.5, 0.6]), 0.1).n == 0


def test_intervals_of_sizes_come_from_the_same_draws():
    draws = numpy.stack([numpy.full(100, 0.05), numpy.linspace(0.06, 0.12, 100), numpy.full(100, 0.5)])
    found = within(points([0.05, 0.09, 0.5], draws), 0.1)
    assert (found.n, found.certain, found.sizes) == (2, 1, (1, 2))
    assert found.interval == pytest.approx((0.0615, 0.1185))


def test_intervals_are_paired(two_recipes):
    """The bootstrap of a perplexity's ratio, computed once more from the windows' losses."""
    recipe = two_recipes["recipes"][1]
    size = recipe["sizes"][1]
    arrays = Answers(Path("both") / size["run_id"]).arrays
    dense, model = (arrays[f"{stage}/ppl/pydoc/windows"].numpy() for stage in ("dense", "patched"))
    drawn = numpy.random.default_rng(0).integers(len(dense), size=(2_000, len(dense)))
    ratios = numpy.exp((model - dense)[drawn].mean(axis=1)) - 1
    assert size["interval"] == pytest.approx(list(numpy.quantile(ratios, [0.025, 0.975])))
