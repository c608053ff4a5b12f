"""What W&B's own reader sees of a run."""

import json
import logging
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pandas
import pytest

from linearpatch.cli import main
from linearpatch.results.record import Record
from linearpatch.tracking.wandb import WandbTracker, run_tags

pytest_plugins = ("tracked_run",)
pytestmark = pytest.mark.usefixtures("shared_cache")
wandb = pytest.importorskip("wandb")
TINY = ("run", "debug=tiny", "model=random", "num_pruned_layers=3", "tracker=wandb", "tracker.wandb.figures=false")


def inspect(folder):
    """The records of a run's offline file, by type."""
    (run,) = Path(folder).glob("wandb/offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = defaultdict(list)
    for record in map(json.loads, done.stdout.splitlines()):
        records[record["type"]].append(record[record["type"]])
    return records


def updates(records, kind):
    """All that was set of a run's `config` or `summary`."""
    found = dict(records["run"][0].get(kind, {}).get("update", {}))
    for record in records[kind]:
        found |= record.get("update", {})
    return found


def history(records):
    return [record["item"] for record in records["history"]]


@pytest.fixture(scope="module")
def records(tracked):
    return inspect(tracked.folder)


def test_group_tags_and_settings_are_there_to_group_and_filter_by(records, tracked):
    (run,) = records["run"]
    assert run["run_group"] == "night"
    assert run["display_name"] == tracked.record["run_id"]
    assert run["tags"] == ["random", "streamline", "rotate", "pydoc", "n=3"]
    config = updates(records, "config")
    assert config["removed_layers"] == tracked.record["pruning"]["removed_layers"]
    assert (config["pruner_name"], config["patch_name"], config["distill_name"]) == (
        "streamline",
        "rotate",
        "output_kl",
    )
    assert config["pruner"] == tracked.record["config"]["pruner"]


def test_the_summary_has_value_stderr_ratio_and_parameters(records, tracked):
    summary, metrics = updates(records, "summary"), tracked.record["metrics"]
    assert (summary["status"], summary["num_pruned_layers"]) == ("completed", 3)
    for stage in ("dense", "pruned", "patched", "distilled"):
        metric = metrics[stage]["ppl/pydoc"]
        assert summary[f"{stage}/ppl/pydoc"] == pytest.approx(metric["value"])
        assert summary[f"{stage}/ppl/pydoc_stderr"] == pytest.approx(metric["stderr"])
    ratio = metrics["patched"]["ppl/pydoc"]["value"] / metrics["dense"]["ppl/pydoc"]["value"]
    assert summary["patched/ppl/pydoc_x_dense"] == pytest.approx(ratio)
    removed = tracked.record["pruning"]["num_parameters_removed"]
    assert summary["pruned/num_parameters"] == tracked.record["model"]["num_parameters"] - removed
    assert "time/rank" in summary


def test_metrics_are_drawn_against_layers_removed(records, tracked):
    """From dense, at 0, to this run's number: W&B joins the points of a run to a line over that axis."""
    axes = {one["glob_name"]: one["step_metric"] for one in records["metric"] if "glob_name" in one}
    assert axes["pruned/*"] == axes["patched/*"] == axes["distilled/*"] == "num_pruned_layers"
    assert axes["distill/*"] == "distill/step"
    metrics = tracked.record["metrics"]
    for stage in ("pruned", "patched", "distilled"):
        drawn = {
            one["num_pruned_layers"]: one[f"{stage}/ppl/pydoc"]
            for one in history(records)
            if f"{stage}/ppl/pydoc" in one
        }
        expected = {0: metrics["dense"]["ppl/pydoc"]["value"], 3: metrics[stage]["ppl/pydoc"]["value"]}
        assert drawn == pytest.approx(expected)


def test_curves_of_training_are_recorded(records, tracked):
    drawn = {one["distill/step"]: one["distill/loss"] for one in history(records) if "distill/loss" in one}
    points = [point for point in tracked.record["distillation"]["curve"] if "loss" in point]
    assert drawn == pytest.approx({point["step"]: point["loss"] for point in points})


def test_layers_and_interfaces_are_tables_and_figures_are_images(tracked):
    def table(name):
        (file,) = tracked.folder.glob(f"wandb/offline-run-*/files/media/table/tables/{name}_*.table.json")
        content = json.loads(file.read_text())
        return pandas.DataFrame(content["data"], columns=content["columns"])

    layers, pruning = table("layers"), tracked.record["pruning"]
    assert len(layers) == tracked.record["model"]["num_layers"]
    removed = layers[layers["removed"]].sort_values("order of removal")
    assert list(removed["layer"]) == pruning["removed_layers"]
    assert list(layers.iloc[:, 1].dropna()) == pytest.approx([v for v in pruning["scores"]["values"] if v is not None])
    assert table("interfaces")[["start", "end"]].to_numpy().tolist() == pruning["interfaces"]
    images = tracked.folder.glob("wandb/offline-run-*/files/media/images/figures/*.png")
    assert {image.name.partition("_")[0] for image in images} >= {"scores", "distillation"}


def test_a_failed_run_is_recorded_as_failed(tmp_path):
    assert main([*TINY, "num_pruned_layers=99", f"output_dir={tmp_path}/D"]) == 1
    records = inspect(tmp_path / "D")
    assert updates(records, "summary")["status"] == "failed"
    assert records["exit"][0]["exit_code"] == 1


def test_what_is_added_later_belongs_to_the_same_run(tmp_path):
    assert main([*TINY, f"output_dir={tmp_path}/D"]) == 0
    assert main([*TINY, "eval.ppl.seq_len=64", f"output_dir={tmp_path}/D"]) == 0
    # Folders are offline-run-DATE_TIME-ID, with -1 after the second one of a second.
    names = [folder.name for folder in (tmp_path / "D" / "wandb").glob("offline-run-*")]
    ids = [name.split("-")[3] for name in names]
    assert len(ids) == 2
    assert len(set(ids)) == 1


@pytest.mark.slow
def test_the_runs_of_a_sweep_share_their_group(tmp_path):
    words = ["run", "-m", *TINY[1:], "patch=none,rotate", "group=mine", "tracker.wandb.tags=[night]"]
    assert main([*words, f"output_dir={tmp_path}/S"]) == 0
    runs = [inspect(folder)["run"][0] for folder in (tmp_path / "S").glob("random-*")]
    assert [run["run_group"] for run in runs] == ["mine", "mine"]
    assert all("night" in run["tags"] for run in runs)
    assert len({run["run_id"] for run in runs}) == 2


def test_a_run_that_cannot_be_streamed_is_kept_offline(tmp_path, monkeypatch, caplog):
    """W&B fails to start online; only what it is asked for is replaced here."""
    monkeypatch.setattr(logging.getLogger("linearpatch"), "propagate", True)
    modes, init = [], wandb.init

    def unreachable(*, mode, **more):
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no network")
        return init(mode=mode, **more)

    monkeypatch.setattr(wandb, "init", unreachable)
    record = Record("run", None, "", 0, {"choices": {}}, status="completed")
    with WandbTracker(mode="online").follow(record, tmp_path):
        pass
    assert modes == ["online", "offline"]
    assert "no network The run is kept offline. Log in with `wandb login`, and upload it later" in caplog.text
    assert updates(inspect(tmp_path), "summary")["status"] == "completed"


def test_questions_are_a_table(tmp_path):
    from torch import tensor

    from linearpatch.results.questions import Answers
    from linearpatch.tracking.views import tables

    with Answers(tmp_path) as answers:
        answers.add("dense", "questions", "qa/a/acc", tensor([1.0, 0.0]))
        answers.add("pruned", "questions", "qa/a/acc", tensor([1.0, 1.0]))
        answers.add("pruned", "questions", "qa/b/acc", tensor([0.0]))
    table = tables(Record("run", None, "", 0, {}), tmp_path)["questions"]
    assert table.columns == ("metric", "question", "document", "dense", "pruned")
    assert table.rows == (
        ("qa/a/acc", 0, "", 1.0, 1.0),
        ("qa/a/acc", 1, "", 0.0, 1.0),
        ("qa/b/acc", 0, "", None, 0.0),
    )
    wandb.Table(columns=list(table.columns), data=list(table.rows))


def test_tags_are_those_that_wandb_takes():
    config = {"choices": {"model": "m" * 100, "pruner": "sleb"}, "num_pruned_layers": 7}
    assert run_tags(Record("run", None, "", 0, config)) == ["m" * 64, "sleb", "n=7"]
