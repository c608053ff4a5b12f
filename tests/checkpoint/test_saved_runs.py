"""Runs that save their model: the checkpoint is what was measured, and joins the record."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import FAST, result, run

from linearpatch.cli import main
from linearpatch.config import compose_experiment


@pytest.fixture(autouse=True)
def _cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


def test_a_checkpoint_asked_for_later_joins_the_record(tmp_path):
    assert run(f"output_dir={tmp_path}/D") == 0
    measured = result(tmp_path / "D")["metrics"]
    assert run(f"output_dir={tmp_path}/D", "save_model=true") == 0
    found = result(tmp_path / "D")
    size = sum(file.stat().st_size for file in (tmp_path / "D" / "model").iterdir())
    assert found["checkpoint"] == {"folder": "model", "format": "custom", "bytes": size, "pushed_to": None}
    assert found["metrics"] == measured
    assert run(f"output_dir={tmp_path}/D", "stages=[dense]") == 0
    assert result(tmp_path / "D")["checkpoint"] == found["checkpoint"]
    card = (tmp_path / "D" / "model" / "README.md").read_text()
    assert f"{measured['patched']['ppl/pydoc']['value']:,.2f} ±" in card
    assert found["run_id"] in card


@pytest.mark.parametrize("patch", ["lstsq", "normed_refit"])
def test_what_is_doubtful_about_a_fit_stands_in_the_record_and_on_the_card(tmp_path, patch):
    little = ("calibration.num_blocks=1", "calibration.block_length=16", f"patch={patch}", "patch.compare=false")
    assert run(*little, "patch.ridge=0.1", "save_model=true", f"output_dir={tmp_path}/D") == 0
    (warning,) = result(tmp_path / "D")["patch"]["warnings"]
    assert "unknowns per channel; the fit will overfit them" in warning
    assert warning in (tmp_path / "D" / "model" / "README.md").read_text()


def test_what_a_checkpoint_says_of_its_origin_names_no_folder_of_this_machine(tmp_path):
    """Checkpoints are published; folders name people, projects and machines."""
    (tmp_path / "my text.txt").write_text("The cat sat on the mat and looked at the moon. " * 4000)
    text = ("corpus=text", f"corpus.path={tmp_path}/my text.txt")
    assert run(*text, "stages=[dense]", "save_model=true", f"output_dir={tmp_path}/D") == 0
    for name in ("README.md", "pruning.json"):
        written = (tmp_path / "D" / "model" / name).read_text()
        assert str(tmp_path) not in written
        assert "my text.txt" in written


@pytest.mark.slow
def test_the_code_of_a_card_loads_the_model_and_asks_nothing(tmp_path):
    """In a process of its own: the tokenizer needs no remote code, and transformers warns of nothing."""
    assert run("patch=lstsq", "save_model=true", f"output_dir={tmp_path}/D") == 0
    card = (tmp_path / "D" / "model" / "README.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        code = code.replace("FOLDER", str(tmp_path / "D" / "model"))
        found = subprocess.run(
            [sys.executable, "-c", f"{code}\nprint(type(model).__name__, tokenizer('text').input_ids)"],
            capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "ForCausalLM" in found.stdout
        assert "custom code" not in found.stdout + found.stderr
        assert "to instantiate a model of type" not in found.stderr


@pytest.mark.slow
def test_a_card_says_that_the_saved_model_was_not_measured(tmp_path):
    assert run("stages=[dense]", "save_model=true", f"output_dir={tmp_path}/D") == 0
    assert "was not measured" in (tmp_path / "D" / "model" / "README.md").read_text()
    assert run("stages=[patched]", "save_model=true", f"output_dir={tmp_path}/D") == 0
    assert "was not measured" not in (tmp_path / "D" / "model" / "README.md").read_text()


def test_a_folder_named_model_of_someone_else_is_rejected_before_anything_is_computed(tmp_path, said):
    (tmp_path / "D" / "model").mkdir(parents=True)
    (tmp_path / "D" / "model" / "mine.txt").write_text("precious")
    assert run("save_model=true", f"output_dir={tmp_path}/D") == 1
    assert "isn't a checkpoint of this package" in said()
    assert [path.name for path in (tmp_path / "D").iterdir()] == ["model"]
    assert (tmp_path / "D" / "model" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("save_format", ["custom", "plain", "adapter"])
def test_the_saved_model_is_the_one_that_was_measured(save_format, tmp_path):
    import linearpatch
    from linearpatch.evaluation.perplexity import window_losses
    from linearpatch.models.decoder import decoder_of

    overrides = [*FAST, "patch=scalar", "save_model=true", f"save_format={save_format}", "eval.ppl.bos=each"]
    assert main(["run", *overrides, f"output_dir={tmp_path}/D"]) == 0
    experiment = compose_experiment(overrides)
    dense = experiment.model.load(experiment.cache_path)
    blocks = experiment.evaluation_reader.read(experiment.evaluations["ppl"].spec("ppl"), dense.tokenizer)
    if save_format == "adapter":
        model = linearpatch.apply(dense.decoder.model, tmp_path / "D")
    else:
        model = linearpatch.load(tmp_path / "D")
    value = window_losses(decoder_of(model), blocks.ids).mean().exp().item()
    recorded = result(tmp_path / "D")["metrics"]["patched"]["ppl/pydoc"]["value"]
    assert value == pytest.approx(recorded, rel=1e-4 if save_format == "plain" else 1e-9)


@pytest.mark.slow
def test_a_saved_model_is_pruned_once_more_and_keeps_its_licence(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    small = ["debug=tiny", "tracker=none", "num_pruned_layers=2", "save_model=true"]
    assert run("patch=scalar", "save_model=true", "output_dir=a/b") == 0
    card = tmp_path / "a" / "b" / "model" / "README.md"
    card.write_text(card.read_text().replace("library_name:", "license: mit\nlibrary_name:"))
    again = ["model=hub", "model.path=a/b", "patch=none"]
    assert main(["run", *small, *again, "output_dir=c"]) == 0
    assert result("c")["model"]["num_layers"] == 9
    text = Path("c/model/README.md").read_text()
    assert "license: mit" in text
    assert "It was already pruned: it is random" in text
    assert "base_model" not in text  # a folder of this machine is no model of the hub
    assert run("patch=rotate", "save_model=true", "output_dir=d") == 0
    patched = ["model=hub", "model.path=d"]
    assert main(["run", *small, *patched, "output_dir=e"]) == 1
    assert "has lost layers before" in said()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["save_model=true", "save_format=plain", "patch=diag"], "Remaining formats: custom"),
        (["save_model=true", "save_format=pickle"], "Allowed: adapter, auto, custom, gguf, lora, nemotron_nas, plain"),
        (["push_to_hub=me/model"], "set save_model=true"),
        (["save_model=true", "push_to_hub=not a name"], "is not the name of a repository"),
        (["patch=mlp_lstsq", "patch.sites=one_per_layer"], "sites"),
    ],
)
def test_impossible_checkpoints_are_rejected_before_anything_is_computed(overrides, message, tmp_path, said):
    assert run(*overrides, f"output_dir={tmp_path}/D") == 1
    assert message in said()
    assert not (tmp_path / "D").exists()


DIFFLLAMA = ("model.family=diffllama", "pruner=explicit", "pruner.layers=[1,4,5]", "patch=none")


@pytest.mark.slow
def test_a_model_that_would_load_as_another_is_rejected_before_the_long_work(tmp_path, said):
    assert run(*DIFFLLAMA, "save_model=true", f"output_dir={tmp_path}/D") == 1
    printed = said()
    assert "lambda_init" in printed
    assert "save_format=adapter" in printed
    found = result(tmp_path / "D")
    assert not {"fit", "save"} & set(found["timings_s"])
    assert found["metrics"] == {}
    assert run(*DIFFLLAMA, "save_model=true", "save_format=adapter", f"output_dir={tmp_path}/D") == 0


@pytest.mark.parametrize(
    "family",
    [
        ["model.family=gpt_neo", "+model.settings.attention_types=[[[global,local],6]]", "+model.settings.num_heads=2"],
        [
            "model.family=llama4_text",
            "+model.settings.interleave_moe_layer_step=1",
            "+model.settings.num_local_experts=2",
        ],
        pytest.param(["model.family=mamba", "+model.settings.state_size=4"], marks=pytest.mark.slow),
    ],
    ids=["gpt_neo", "llama4_text", "mamba"],
)
@pytest.mark.slow
def test_families_with_names_of_their_own_decode_and_are_measured(family, tmp_path):
    evaluations = ["eval=[ppl,smoke,speed]", "eval.speed.rounds=2", "eval.speed.warmup=0", "eval.speed.lengths=[8]"]
    sizes = ["model.settings.hidden_size=32", "+model.settings.pad_token_id=0", "model.attn_implementation=eager"]
    assert run(*family, *sizes, "patch=none", *evaluations, f"output_dir={tmp_path}/D") == 0
    metrics = result(tmp_path / "D")["metrics"]
    assert metrics["pruned"]["ppl/pydoc"]["value"] > 1
    assert metrics["pruned"]["speed/decode_tokens_per_s"]["value"] > 0
