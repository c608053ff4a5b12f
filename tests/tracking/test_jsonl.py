"""What pandas reads of `metrics.jsonl`."""

import json

import pandas
import pytest

from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.tracking.jsonl import FILE_NAME, JsonlTracker

pytest_plugins = ("tracked_run",)


def read(folder):
    return pandas.read_json(folder / FILE_NAME, lines=True)


def test_every_metric_is_there_as_in_the_record(tracked):
    table = read(tracked.folder).query("kind == 'metric'").set_index(["stage", "name"])
    metrics = tracked.record["metrics"]
    assert len(table) == sum(map(len, metrics.values()))
    for stage, measured in metrics.items():
        for name, metric in measured.items():
            row = table.loc[stage, name]
            assert row["value"] == pytest.approx(metric["value"])
            assert row["stderr"] == pytest.approx(metric["stderr"], nan_ok=True)
            assert row["n"] == metric["n"]
    dense, pruned = (metrics[stage]["ppl/pydoc"]["value"] for stage in ("dense", "pruned"))
    assert table.loc["pruned", "ppl/pydoc"]["x_dense"] == pytest.approx(pruned / dense)


def test_curves_are_those_of_the_record(tracked):
    table = read(tracked.folder).query("kind == 'curve' and name == 'distill/loss'")
    points = [point for point in tracked.record["distillation"]["curve"] if "loss" in point]
    assert list(table["step"]) == [point["step"] for point in points]
    assert list(table["value"]) == pytest.approx([point["loss"] for point in points])
    assert set(table["stage"]) == {"distilled"}


def test_every_line_has_the_same_keys_and_says_which_run_it_is_of(tracked):
    lines = [json.loads(line) for line in (tracked.folder / FILE_NAME).read_text().splitlines()]
    assert len({tuple(line) for line in lines}) == 1
    assert {(line["run_id"], line["num_pruned_layers"], line["patch"]) for line in lines} == {
        (tracked.record["run_id"], 3, "rotate")
    }


def test_points_can_be_read_while_it_runs_and_stay_once_each(tmp_path):
    record = Record("run", None, "", 0, {"choices": {}})
    for _ in range(2):  # a run that is resumed reports the points before that again
        with JsonlTracker().follow(record, tmp_path) as add:
            for step in (0, 10):
                add({"distill/step": step, "distill/loss": 1.0 / (step + 1)})
            assert read(tmp_path)["step"].iloc[-1] == 10
        assert list(read(tmp_path)["step"]) == [0, 10]


def test_a_failed_run_keeps_what_it_measured(tmp_path):
    record = Record("run", None, "", 0, {"choices": {}}, status="failed")
    record.metrics["dense"] = {
        "ppl/x": Metric.of(float("inf"), None, 5, "p", "h"),
        "a": Metric.of(2.0, 0.5, 7, "p", "h"),
    }
    with pytest.raises(OSError, match="broken"), JsonlTracker().follow(record, tmp_path):
        raise OSError("broken")
    assert read(tmp_path).set_index("name")["value"].isna().to_dict() == {"ppl/x": True, "a": False}
