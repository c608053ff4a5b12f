"""Distillation in whole runs: stages, the record, the checkpoint, and runs that are killed or shared."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FAST, result

import linearpatch
from linearpatch.checkpoint.manifest import read_manifest
from linearpatch.cli import main
from linearpatch.distillation.output_kl import OutputKL

TRAINED = (*FAST, "distill=output_kl", "distill.top_k=20", "distill.learning_rate=1e-3")
LONGER = (*TRAINED, "distillation.num_blocks=40", "distill.epochs=2", "save_model=true", "save_format=adapter")
BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


def patch_of(folder) -> dict:
    (file,) = (Path(folder) / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("distill", ["output_kl", "full_kl", "feature_mse"])
@pytest.mark.slow
def test_a_run_measures_and_saves_the_distilled_model(distill, tmp_path, capsys):
    settings = [*FAST, f"distill={distill}", "distill.learning_rate=1e-3", "save_model=true", "eval=[ppl,speed]"]
    assert main(["run", *settings, f"output_dir={tmp_path}/D"]) == 0
    found = result(tmp_path / "D")
    trained = found["distillation"]
    assert trained["method"] == distill
    assert trained["num_steps"] == 4
    assert trained["validation_loss"]["best"] <= trained["validation_loss"]["first"]
    assert [point["step"] for point in trained["curve"] if "loss" in point] == [1, 2, 3, 4]
    assert found["calibration"]["token_hash"] != trained["token_hash"] != trained["validation"]["token_hash"]
    measured = {stage: metrics["ppl/pydoc"]["value"] for stage, metrics in found["metrics"].items()}
    assert set(measured) == {"dense", "pruned", "patched", "distilled"}
    assert measured["distilled"] != measured["patched"]
    assert "patched" in found["metrics"]["distilled"]["speed/prefill_s"]["versus"]

    model = linearpatch.load(tmp_path / "D" / "model")
    manifest = read_manifest(tmp_path / "D" / "model")
    assert manifest.provenance["distillation"]["best_step"] == trained["best_step"]
    card = (tmp_path / "D/model/README.md").read_text()
    assert f"against the dense model (`{distill}`, 4 sequences" in card
    assert "which began as `rotate` and was distilled" in card
    assert trained["num_trained"] == trained["num_parameters"] == 256**2
    assert trained["text_tokens"] > 4 * 128
    own = next(weight for name, weight in model.named_parameters() if "linear_patch" in name)
    assert not torch.equal(own, own.T)  # the paper's patch is symmetric until it is trained


@pytest.mark.slow
def test_a_healed_run_saves_an_adapter_for_peft(tmp_path):
    settings = ["distill.trainable=lora", "save_model=true", "save_format=lora", "distillation.num_blocks=16"]
    assert main(["run", *TRAINED, *settings, "distill.learning_rate=1e-4", f"output_dir={tmp_path}/D"]) == 0
    trained = result(tmp_path / "D")["distillation"]
    assert trained["best_step"] > 0
    assert trained["settings"]["trainable"] == "lora"
    assert trained["num_tokens"] == 16 * trained["block_length"]
    assert trained["num_trained"] > trained["num_parameters"]
    assert {file.name for file in (tmp_path / "D/model/lora").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert "**Trained**: LoRA updates of the kept layers' matrices" in (tmp_path / "D/model/README.md").read_text()
    linearpatch.load(tmp_path / "D")


@pytest.mark.slow
def test_evaluations_asked_for_later_train_nothing(tmp_path, monkeypatch):
    assert main(["run", *TRAINED, f"output_dir={tmp_path}/D"]) == 0
    monkeypatch.setattr(OutputKL, "loss", None)
    assert main(["run", *TRAINED, "eval=[diagnostics]", f"output_dir={tmp_path}/D"]) == 0
    assert set(result(tmp_path / "D")["metrics"]["distilled"]) > {"ppl/pydoc"}


@pytest.mark.slow
def test_targets_kept_on_disk_are_no_other_run(tmp_path):
    for name in ("online", "cached"):
        own = [f"distill.targets={name}", f"cache_dir={tmp_path}/{name}_cache", f"output_dir={tmp_path}/{name}"]
        assert main(["run", *LONGER, *own]) == 0
    assert len(list((tmp_path / "cached_cache" / "targets").glob("*.safetensors"))) == 2
    first, second = patch_of(tmp_path / "online"), patch_of(tmp_path / "cached")
    assert all(torch.equal(values, second[name]) for name, values in first.items())
    assert result(tmp_path / "online")["run_id"] == result(tmp_path / "cached")["run_id"]


@pytest.mark.slow
def test_a_sweep_over_distillations_tells_them_apart(tmp_path, capsys):
    assert main(["run", "-m", *FAST, "distill=none,output_kl", f"output_dir={tmp_path}/D"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"│ rotate │ +│", shown)
    assert re.search(r"│ rotate │ output_kl │", shown)


def start(folder, *overrides, cache):
    environment = {**os.environ, "LINEARPATCH_CACHE": str(cache)}
    command = [str(BIN / "linearpatch"), "run", *LONGER, *overrides, f"output_dir={folder}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(found, process, seconds=120):
    until = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trainable"),
    [(signal.SIGKILL, "patch"), (signal.SIGTERM, "patch"), (signal.SIGKILL, "lora"), (signal.SIGKILL, "all")],
)
def test_a_killed_run_ends_as_if_it_hadnt_been(kind, trainable, tmp_path):
    often, trained = "distill.checkpoint_steps=1", f"distill.trainable={trainable}"
    killed = start(tmp_path / "D", often, trained, cache=tmp_path / "cache")
    wait_for(lambda: list((tmp_path / "cache").glob("distillation_state/*.safetensors")), killed)
    killed.send_signal(kind)
    output = killed.communicate(timeout=120)[0]
    assert killed.returncode != 0, output
    status = result(tmp_path / "D")
    assert status["status"] == {signal.SIGKILL: "running", signal.SIGTERM: "interrupted"}[kind]
    if kind == signal.SIGTERM:
        assert "SIGTERM after step" in status["error"]

    again = start(tmp_path / "D", often, trained, cache=tmp_path / "cache")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert "resuming after step" in output
    whole = start(tmp_path / "E", trained, cache=tmp_path / "other_cache")
    assert whole.wait(timeout=300) == 0
    first, second = patch_of(tmp_path / "D"), patch_of(tmp_path / "E")
    assert first.keys() == second.keys()
    assert all(torch.equal(values, second[name]) for name, values in first.items())
    assert (
        result(tmp_path / "D")["distillation"]["best_step"] == result(tmp_path / "E")["distillation"]["best_step"] > 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainable", "setting"),
    [
        ("patch", "distill.targets=cached"),
        ("lora", "distill.targets=cached"),
        ("all", "distill.targets=cached"),
        ("lora", "distill.sharded=true"),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(tmp_path, trainable, setting):
    environment = {**os.environ, "LINEARPATCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    # On CPUs accelerate starts several processes by MPI only; under torchrun it finds them just so.
    launch = [str(BIN / "torchrun"), "--nproc_per_node=2", "--standalone", "-m", "linearpatch.cli"]
    overrides = [
        *LONGER,
        "distillation.num_blocks=41",
        "distillation.validation_blocks=3",
        f"distill.trainable={trainable}",
        f"distill.learning_rate={1e-5 if trainable == 'all' else 1e-3}",  # a rate at which something is learnt
    ]
    shared = ["distill.accumulation=2", setting]
    done = subprocess.run([*launch, "run", *overrides, *shared, f"output_dir={tmp_path}/two"], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("result.json") == 1  # the first process speaks for both
    assert result(tmp_path / "two")["distillation"]["num_steps"] == 2 * 21
    one = start(tmp_path / "one", *overrides[len(LONGER) :], "distill.batch_size=2", cache=tmp_path / "cache")
    assert one.wait(timeout=300) == 0
    first, second = patch_of(tmp_path / "two"), patch_of(tmp_path / "one")
    for name, values in first.items():
        # Sums of two halves round otherwise, and AdamW's first steps make much of little where a gradient is nothing.
        assert torch.allclose(values, second[name], atol=1e-5 if trainable == "patch" else 1e-3)
        assert values.dim() == 1 or not torch.equal(values, torch.eye(*values.shape))
    curves = [
        [point["validation_loss"] for point in result(tmp_path / name)["distillation"]["curve"] if "loss" not in point]
        for name in ("two", "one")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["distill.sharded=true", "distill.sharded=false"])
def test_processes_that_are_stopped_together_resume_together(tmp_path, sharded):
    environment = {**os.environ, "LINEARPATCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [str(BIN / "torchrun"), "--nproc_per_node=2", "--standalone", "-m", "linearpatch.cli", "run", *LONGER]
    command += ["distill.trainable=lora", "distill.accumulation=2", "distill.checkpoint_steps=1", sharded]
    command += [f"output_dir={tmp_path}/D"]
    stopped = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list((tmp_path / "cache").glob("distillation_state/*.safetensors")), stopped)
    stopped.terminate()  # torchrun passes it on, and waits half a minute for its processes
    output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode != 0, output
    assert result(tmp_path / "D")["status"] == "interrupted", output
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stderr
    assert result(tmp_path / "D")["distillation"]["num_steps"] == 40


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["patch=none"], "distill=output_kl trains patches, and patch=none has none"),
        (["distill.top_k=513"], "top_k is 513, but the model's vocabulary has 512 tokens"),
        (["distillation.block_length=4096", "distillation.validation_blocks=100"], "too few for 100 blocks of 4096"),
        (
            ["distillation.num_blocks=100000", "distillation.sampling=windows"],
            "allow overlap (distillation.sampling=crops)",
        ),
        (["distillation.validation_blocks=0"], "validation_blocks is 0. Allowed: at least 1"),
        (["distillation.sampling=document_crops"], "Allowed: crops, first, windows"),
        (["patch=scalar", "save_model=true", "save_format=plain"], "once it has been distilled"),
        (["corpus@distillation.corpus=text", "distillation.corpus.path=nowhere"], "nowhere"),
        (["distill.trainable=lora", "distill.lora_targets=[query]"], "no matrix query. Allowed: some of down_proj"),
        (["distill.trainable=diagonal"], "Use distill.patch_form=diagonal"),
        (["save_model=true", "save_format=lora"], "Use distill.trainable=lora, or another save_format"),
        (["distill.lr=1"], "The key 'distill.lr' doesn't exist"),
    ],
)
def test_mistakes_are_told_before_a_layer_is_ranked(tmp_path, said, overrides, message):
    assert main(["run", *TRAINED, f"output_dir={tmp_path}/D", *overrides]) == 1
    assert message in said()
    file = tmp_path / "D" / "result.json"
    assert not file.exists() or "rank" not in result(tmp_path / "D")["timings_s"]


def test_stages_need_a_distillation(tmp_path, said):
    assert main(["run", *FAST, "stages=[distilled]", f"output_dir={tmp_path}/D"]) == 1
    assert "needs a distillation, and distill is none" in said()


def test_text_serves_one_purpose_only(tmp_path, said):
    file = tmp_path / "text.txt"
    file.write_text("a line of text\n" * 5000)
    own = {"path": file, "calibration": "all[50%:70%]", "distillation": "all[:50%]"}
    shared = ["corpus=text", f"corpus.path={file}", "corpus@distillation.corpus=text"]
    shared += [f"distillation.corpus.{name}='{value}'" for name, value in own.items()]
    assert main(["run", *TRAINED, *shared, f"output_dir={tmp_path}/D"]) == 1
    assert "calibration reads" in (message := said())
    assert "share text" in message


@pytest.mark.slow
def test_a_learning_rate_that_diverges_fails_with_the_best_patch_kept(tmp_path, said, monkeypatch):
    real, count = OutputKL.loss, []

    def breaking(self, student, lesson):
        loss = real(self, student, lesson)
        count.append(loss.requires_grad)
        return loss * float("inf") if count.count(True) == 30 else loss

    monkeypatch.setattr(OutputKL, "loss", breaking)
    arguments = ["run", *LONGER, "seed=5", "distill.learning_rate=1e-4", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 1
    message = said()
    assert "the loss is inf at step 30 of 80" in message
    assert "kept as an adapter" in message
    found = result(tmp_path / "D")
    assert found["status"] == "failed"
    assert "step 30" in found["error"]
    assert found["distillation"]["num_steps"] == 29
    assert 0 < found["distillation"]["best_step"] < 30
    assert read_manifest(tmp_path / "D" / "best_patch").format == "adapter"


def test_a_rate_too_high_leaves_the_fitted_patch(tmp_path):
    arguments = ["run", *TRAINED, "distill.learning_rate=10", "distill.max_grad_norm=null", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 0
    found = result(tmp_path / "D")
    assert found["distillation"]["best_step"] == 0
    perplexities = [found["metrics"][stage]["ppl/pydoc"]["value"] for stage in ("patched", "distilled")]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)
