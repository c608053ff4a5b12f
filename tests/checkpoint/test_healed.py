"""Models with trained weights, in every format: what is loaded is what was trained."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, in_projection, on_mlp, on_stream
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import linearpatch
from linearpatch.checkpoint.checks import check_format
from linearpatch.checkpoint.manifest import read_manifest
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.errors import ConfigError, ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.none import NoPatch
from linearpatch.patches.rotate import Rotate

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
GENERATOR = torch.Generator().manual_seed(1)
REMOVED = [2, 3]
PATCHES = {
    "on the stream": (on_stream(2, 4), torch.eye(32) + 0.1 * torch.randn(32, 32, generator=GENERATOR)),
    "on the MLP": (on_mlp(2, 4), torch.eye(32) + 0.1 * torch.randn(32, 32, generator=GENERATOR)),
    "in the projection": (in_projection(2, 4), 0.1 * torch.randn(48, 32, generator=GENERATOR)),
    "none": None,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    return LoadedModel(decoder_of(tiny_model()), byte_tokenizer(), "0123456789abcdef")


def healed(decoder, patch="on the stream", **settings):
    """An edit as it is after training: each changed weight is another one."""
    chosen = PATCHES[patch]
    edit = edit_of(REMOVED, [(chosen[0], LinearMap(chosen[1]))] if chosen else [])
    training = OutputKL(top_k=5, **settings)
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for name, change in training.trainable_set.weights(decoder, edit, 0).items():
        weights[name] = change.trained()
        for parameter in weights[name].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return edit.with_weights(weights)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("settings", [{"trainable": "lora"}, {"trainable": "all"}], ids=["lora", "all"])
@pytest.mark.parametrize("save_format", ["plain", "custom", "adapter"])
@pytest.mark.parametrize("patch", PATCHES)
def test_what_was_trained_is_what_loads(tmp_path, model, patch, save_format, settings):
    if (patch, save_format) == ("on the stream", "plain"):
        pytest.skip("a matrix on the stream can't be folded")
    edit = healed(model.decoder, patch, **settings)
    expected = logits(edit.view(model.decoder))
    plain = logits(edit.with_weights({}).view(model.decoder))
    assert not torch.allclose(expected, plain, atol=0.1)
    manifest = save_checkpoint(tmp_path / "M", model, edit, save_format=save_format)
    if save_format == "adapter":
        found = linearpatch.apply(tiny_model(), tmp_path / "M")
    else:
        found = linearpatch.load(tmp_path / "M")
        remote = AutoModelForCausalLM.from_pretrained(tmp_path / "M", trust_remote_code=manifest.format == "custom")
        assert torch.allclose(logits(remote), expected, atol=1e-4)
    assert torch.allclose(logits(found), expected, atol=1e-4)


@pytest.mark.parametrize("patch", ["on the stream", "in the projection", "none"])
def test_peft_loads_the_adapter_on_the_pruned_model(tmp_path, model, patch):
    edit = healed(model.decoder, patch, trainable="lora", lora_alpha=20, lora_rank=8)
    manifest = save_checkpoint(tmp_path / "M", model, edit, save_format="lora")
    assert (manifest.format, manifest.lora) == ("custom" if patch == "on the stream" else "plain", True)
    expected = logits(edit.view(model.decoder))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "M", trust_remote_code=manifest.format == "custom")
    assert torch.allclose(logits(base), logits(edit.with_weights({}).view(model.decoder)), atol=1e-4)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, tmp_path / "M" / "lora")), expected, atol=1e-4)
    assert torch.allclose(logits(linearpatch.load(tmp_path / "M")), expected, atol=1e-4)
    config = json.loads((tmp_path / "M" / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 20, None)
    assert "PeftModel.from_pretrained(model" in (tmp_path / "M" / "README.md").read_text()


def test_of_a_family_with_transposed_weights(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_inner": 48, "n_positions": 64}
    unset = dict.fromkeys(("hidden_size", "num_hidden_layers", "intermediate_size"))
    model = LoadedModel(decoder_of(tiny_model("gpt2", **sizes, **unset)), byte_tokenizer(), "0123456789abcdef")
    edit = healed(model.decoder, "none", trainable="lora")
    expected = logits(edit.view(model.decoder))
    save_checkpoint(tmp_path / "M", model, edit, save_format="lora")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "M")
    assert torch.allclose(logits(PeftModel.from_pretrained(base, tmp_path / "M" / "lora")), expected, atol=1e-4)


def test_an_adapter_holds_whole_weights_in_the_models_precision(tmp_path):
    model = LoadedModel(decoder_of(tiny_model().bfloat16()), byte_tokenizer(), "0123456789abcdef")
    for settings, dtype in (({"trainable": "norms"}, torch.bfloat16), ({"trainable": "lora"}, torch.float32)):
        edit = healed(model.decoder, "none", **settings)
        save_checkpoint(tmp_path / "A", model, edit, save_format="adapter")
        stored = load_file(tmp_path / "A" / "patch.safetensors")
        assert {values.dtype for values in stored.values()} == {dtype}
        found = linearpatch.apply(tiny_model().bfloat16(), tmp_path / "A")
        assert torch.equal(logits(found), logits(edit.view(model.decoder)))


def test_a_manifest_from_before_is_read(tmp_path, model):
    save_checkpoint(tmp_path / "A", model, edit_of(REMOVED), save_format="adapter")
    file = tmp_path / "A" / "pruning.json"
    content = json.loads(file.read_text())
    assert (content.pop("weights"), content.pop("lora")) == ([], False)
    content.pop("sha256")
    from linearpatch.checkpoint.manifest import _digest

    file.write_text(json.dumps(content | {"sha256": _digest(content)}))
    assert read_manifest(tmp_path / "A").weights == ()


def test_an_adapter_without_a_weight_is_told(tmp_path, model):
    save_checkpoint(tmp_path / "A", model, healed(model.decoder, "none", trainable="norms"), save_format="adapter")
    stored = load_file(tmp_path / "A" / "patch.safetensors")
    removed = stored.pop("weight.3.weight")
    assert removed.shape == (32,)
    save_file(stored, tmp_path / "A" / "patch.safetensors")
    with pytest.raises(StorageError, match="changed since it was written"):
        linearpatch.apply(tiny_model(), tmp_path / "A")


def test_what_lora_cant_hold_is_rejected(tmp_path, model):
    with pytest.raises(ConfigError, match=r"distill=none trains none. Use distill.trainable=lora"):
        check_format("lora", NoPatch())
    with pytest.raises(ConfigError, match=r"distill.trainable=all trains none"):
        check_format("lora", Rotate(), trainable="all")
    with pytest.raises(ModelError, match=r"this model has none: distill.trainable=lora wasn't used"):
        save_checkpoint(tmp_path / "M", model, edit_of(REMOVED), save_format="lora")
    edit = healed(model.decoder, "on the MLP", trainable="lora")
    with pytest.raises(ModelError, match=r"go past the patch. Use save_format=plain"):
        save_checkpoint(tmp_path / "M", model, edit, save_format="lora")
    assert not (tmp_path / "M").exists()


def test_a_view_of_a_view_keeps_its_own_weights(model):
    edit = healed(model.decoder, trainable="all")
    first = logits(edit.view(model.decoder))
    fewer = replace(edit, weights={name: one for name, one in edit.weights.items() if name.layer != 5})
    assert not torch.allclose(logits(fewer.view(model.decoder)), first, atol=1e-3)
    assert torch.equal(logits(edit.view(model.decoder)), first)
