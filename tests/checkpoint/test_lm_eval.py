"""The harness measures on a saved folder what the run recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import lm_eval_task

import linearpatch
from linearpatch.cli import main
from linearpatch.config import compose_experiment

pytest.importorskip("lm_eval")


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["rotate", "mlp_lstsq"])
def test_lm_eval_gives_the_recorded_perplexity(patch, tmp_path, session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "text.txt").write_text("\n\n".join(f"Line {i} says {i * i} and then {i**3}." for i in range(600)))
    overrides = [
        "model=random", "num_pruned_layers=3", "tracker=none", "debug=tiny", f"patch={patch}", "pruner.protect_first=1",
        "corpus=text", f"corpus.path={tmp_path}/text.txt", "eval.ppl.bos=each", "eval.ppl.num_blocks=8",
        *(["patch.ridge=0.01"] if patch == "mlp_lstsq" else []),
    ]  # fmt: skip
    assert main(["run", *overrides, "save_model=true", f"output_dir={tmp_path}/D"]) == 0
    record = json.loads((tmp_path / "D" / "result.json").read_text())

    # One document a window. The tokens of the random model are bytes, so that bytes and tokens count alike.
    experiment, tokenizer = compose_experiment(overrides), linearpatch.load_tokenizer(tmp_path / "D")
    windows = experiment.evaluation_reader.read(experiment.evaluations["ppl"].spec("ppl"), tokenizer).ids
    lines = (json.dumps({"text": tokenizer.decode(window[1:])}) + "\n" for window in windows)
    (tmp_path / "windows.jsonl").write_text("".join(lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "windows.yaml").write_text(lm_eval_task("windows", tmp_path / "windows.jsonl"))
    model = f"pretrained={tmp_path}/D/model,dtype=float32,max_length=128"
    code = ",trust_remote_code=True" if record["checkpoint"]["format"] == "custom" else ""
    command = [
        Path(sys.executable).with_name("lm_eval"), "--model", "hf", "--model_args", model + code, "--tasks", "windows",
        "--include_path", tmp_path / "tasks", "--output_path", tmp_path / "out",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(results.read_text())["results"]["windows"]["byte_perplexity,none"]
    assert measured == pytest.approx(record["metrics"]["patched"]["ppl/text"]["value"], rel=1e-4)
