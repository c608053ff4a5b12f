"""What W&B's own reader sees of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from linearpatch.cli import main

pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


def inspect(folder):
    run = next(Path(folder).glob("wandb/offline-run-*"))
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_run_is_recorded_offline_with_its_summary(tmp_path):
    arguments = ["run", "debug=tiny", "model=random", "num_pruned_layers=3", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "D" / "result.json").read_text())
    shown = inspect(tmp_path / "D")
    for stage in ("dense", "pruned", "patched"):
        assert f"{stage}/ppl/pydoc" in shown
    assert found["run_id"] in shown
    assert "time/rank" in shown
    assert "interfaces" in shown
    assert "layer_scores" in shown


def test_curves_of_training_are_recorded(tmp_path):
    arguments = ["run", "debug=tiny", "model=random", "num_pruned_layers=3", "distill=output_kl"]
    assert main([*arguments, f"output_dir={tmp_path}/D"]) == 0
    shown = inspect(tmp_path / "D")
    for name in ("distill/loss", "distill/validation_loss", "distill/learning_rate", "distilled/ppl/pydoc"):
        assert name in shown


def test_a_failed_run_is_recorded_as_failed(tmp_path):
    arguments = ["run", "debug=tiny", "model=random", "num_pruned_layers=99", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 1
    assert "completed" in inspect(tmp_path / "D")


def test_what_is_added_later_belongs_to_the_same_run(tmp_path):
    arguments = ["run", "debug=tiny", "model=random", "num_pruned_layers=3", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 0
    assert main([*arguments, "eval.ppl.seq_len=64"]) == 0
    ids = [folder.name.rpartition("-")[2] for folder in (tmp_path / "D" / "wandb").glob("offline-run-*")]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_the_runs_of_a_sweep_share_their_group(tmp_path):
    arguments = ["run", "-m", "debug=tiny", "model=random", "num_pruned_layers=3", "patch=none,rotate", "group=mine"]
    assert main([*arguments, "tracker.tags=[night]", f"output_dir={tmp_path}/S"]) == 0
    files = list((tmp_path / "S").glob("*/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    contents = [file.read_bytes() for file in files]
    assert all(b"mine" in content and b"night" in content for content in contents)
    assert len({file.stem for file in files}) == 2
