"""Runs that remove sublayers, from the command line to a checkpoint that loads as what was measured."""

import json

import pytest
import torch
from small_runs import FAST, result, run

import linearpatch
from linearpatch.cli import main
from linearpatch.config import compose_experiment

TOKENS = torch.arange(24)[None] * 7 % 200


def test_attentions_replaced_by_linear_maps_and_saved(tmp_path):
    code = run("pruner=llm_drop", "num_pruned=3", "patch=nbl", "patch.compare=false", "save_model=true",
               "eval=[ppl,speed]", f"output_dir={tmp_path}")  # fmt: skip
    assert code == 0
    found = result(tmp_path)
    pruning = found["pruning"]
    assert pruning["removed_layers"] == []
    assert len(pruning["removed"]) == 3
    assert all(name.endswith(".attention") for name in pruning["removed"])
    assert all(end == start + 0.5 for start, end in pruning["interfaces"])
    assert all("bound" in site for site in found["patch"]["sites"])
    assert found["checkpoint"]["format"] == "custom"
    metrics = found["metrics"]
    cache = {stage: metrics[stage]["speed/kv_cache_bytes_per_token"]["value"] for stage in metrics}
    assert cache["patched"] == cache["pruned"] == cache["dense"] * 9 / 12
    model = linearpatch.load(tmp_path / "model")
    assert sum(layer.is_initialized for layer in model(TOKENS, use_cache=True).past_key_values.layers) == 9
    manifest = json.loads((tmp_path / "model" / "pruning.json").read_text())
    assert manifest["removed"] == pruning["removed"]
    assert "3 attentions of its 12 layers" in (tmp_path / "model" / "README.md").read_text()


def test_an_adapter_of_sublayers_trained_and_put_on_the_dense_model(tmp_path):
    code = run("pruner=sleb", "pruner.unit=sublayer", "num_pruned=4", "patch=average_update", "distill=output_kl",
               "save_model=true", "save_format=adapter", "eval=[ppl]", f"output_dir={tmp_path}")  # fmt: skip
    assert code == 0
    found = result(tmp_path)
    assert set(found["metrics"]) == {"dense", "pruned", "patched", "distilled"}
    dense = compose_experiment([*FAST]).model.load(tmp_path / "cache").decoder.model
    model = linearpatch.apply(dense, tmp_path / "model")
    removed = {name.partition(".")[0] for name in found["pruning"]["removed"]}
    listed = {entry["module"].split(".")[2] for entry in model.config.linear_removed["modules"]}
    assert listed <= removed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruner=streamline", "pruner.unit=mlp", "num_pruned=2"], "pruner.unit=mlp has no meaning"),
        (["pruner=llm_drop"], "needs the number of sublayers to remove: set num_pruned"),
        (["pruner=shortgpt", "num_pruned=3"], "num_pruned=3 counts sublayers, and pruner.unit is layer"),
        (["pruner=llm_drop", "num_pruned=12"], "Allowed: 1 to 11"),
        (["pruner=llm_drop", "num_pruned=2", "save_model=true", "save_format=plain"], "Use save_format=gguf or"),
        (
            ["pruner=explicit", "pruner.unit=attention", "pruner.layers=[0]", "num_pruned=1", "patch=refit"],
            "layer 0 is removed, or its attention. Keep it",
        ),
        (["pruner=llm_drop", "num_pruned=2", "patch=nbl", "distill=feature_mse"], "Use distill=output_kl"),
    ],
)
def test_what_sublayers_cannot_have_a_sentence(overrides, words, tmp_path, capsys):
    assert main(["run", "debug=tiny", "model=random", "tracker=none", f"output_dir={tmp_path}", *overrides]) == 1
    assert words in " ".join(capsys.readouterr().err.split())
