"""What MLflow's own client sees of a run."""

import json
import os

import pandas
import pytest

from linearpatch.cli import main

pytest_plugins = ("tracked_run",)
pytestmark = pytest.mark.usefixtures("shared_cache")
mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install 'linearpatch[mlflow]')")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
TINY = ("run", "debug=tiny", "model=random", "num_pruned_layers=3", "tracker=mlflow")


def runs_in(store, experiment):
    client = mlflow.MlflowClient(tracking_uri=store.resolve().as_uri())
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_settings_metrics_and_curves_are_there(tracked):
    client, (run,) = runs_in(tracked.folder.parent / "mlruns", "night")
    assert run.info.run_name == tracked.record["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["pruner.protect_first"] == str(tracked.record["config"]["pruner"]["protect_first"])
    assert run.data.params["removed_layers"] == str(tracked.record["pruning"]["removed_layers"])
    assert (run.data.tags["pruner"], run.data.tags["patch"]) == ("streamline", "rotate")
    for stage, measured in tracked.record["metrics"].items():
        assert run.data.metrics[f"{stage}/ppl/pydoc"] == pytest.approx(measured["ppl/pydoc"]["value"])
    dense, pruned = (tracked.record["metrics"][stage]["ppl/pydoc"]["value"] for stage in ("dense", "pruned"))
    history = client.get_metric_history(run.info.run_id, "pruned/ppl/pydoc")
    assert {point.step: point.value for point in history} == pytest.approx({0: dense, 3: pruned})
    losses = [point for point in tracked.record["distillation"]["curve"] if "loss" in point]
    history = client.get_metric_history(run.info.run_id, "distill/loss")
    assert {point.step: point.value for point in history} == pytest.approx({one["step"]: one["loss"] for one in losses})


def test_tables_and_figures_are_artifacts(tracked):
    client, (run,) = runs_in(tracked.folder.parent / "mlruns", "night")
    layers = pandas.read_csv(client.download_artifacts(run.info.run_id, "tables/layers.csv"))
    assert list(layers.index[layers["removed"]]) == sorted(tracked.record["pruning"]["removed_layers"])
    names = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert any("scores" in name for name in names)


def test_what_is_added_later_belongs_to_the_same_run(tmp_path):
    words = [*TINY, "tracker.mlflow.experiment=mine", "tracker.mlflow.figures=false", f"output_dir={tmp_path}/D"]
    assert main(words) == 0
    assert main([*words, "eval.ppl.seq_len=64"]) == 0
    _, (run,) = runs_in(tmp_path / "mlruns", "mine")
    value = json.loads((tmp_path / "D" / "result.json").read_text())["metrics"]["patched"]["ppl/pydoc"]["value"]
    assert run.data.metrics["patched/ppl/pydoc"] == pytest.approx(value)


def test_a_failed_run_is_marked_as_failed(tmp_path):
    assert main([*TINY, "num_pruned_layers=99", f"output_dir={tmp_path}/D"]) == 1
    _, (run,) = runs_in(tmp_path / "mlruns", "linearpatch")
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")


def test_telemetry_is_off(tracked):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
