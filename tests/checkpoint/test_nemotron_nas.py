"""Checkpoints of the family nemotron-nas, computed here by the rules of its loaders; vLLM and MLX aren't run."""

import json
from pathlib import Path

import pytest
import torch
from edits import edit_of, in_projection, on_stream
from safetensors.torch import load_file
from test_gguf_layers import EPSILON, edits, linear, loaded, mlp
from tiny import config_of
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

import linearpatch
from linearpatch.checkpoint.nemotron_nas import check_family, multiple_of, padded
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import GatedMlp, LinearMap
from linearpatch.models.random import byte_tokenizer


def width_of(ffn, hidden_size):
    """As loaders compute it."""
    width = int(2 * ffn["ffn_mult"] * hidden_size / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


@torch.no_grad()
def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """A layer is attention behind a norm, then an MLP behind a norm, each where its block has it."""
    content, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    config = LlamaConfig(**{key: value for key, value in content.items() if key not in ("auto_map", "block_configs")})
    config._attn_implementation = "eager"
    used = {"model.embed_tokens.weight", "model.norm.weight"}

    def norm(hidden, name):
        used.add(name)
        return functional.rms_norm(hidden, (config.hidden_size,), state[name], config.rms_norm_eps)

    hidden = functional.embedding(tokens, state["model.embed_tokens.weight"])
    count = tokens.shape[1]
    positions = LlamaRotaryEmbedding(config)(hidden, torch.arange(count)[None])
    mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
    for index, block in enumerate(content["block_configs"]):
        prefix = f"model.layers.{index}"
        if not block["attention"]["no_op"]:
            assert config.num_attention_heads // block["attention"]["n_heads_in_group"] == config.num_key_value_heads
            attention = LlamaAttention(config, index).eval()
            own = {f"{name}_proj.weight": state[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkvo"}
            used |= {f"{prefix}.self_attn.{name}" for name in own}
            attention.load_state_dict(own)
            hidden = hidden + attention(norm(hidden, f"{prefix}.input_layernorm.weight"), positions, mask)[0]
        if block["ffn"]["no_op"]:
            continue
        names = [f"{prefix}.mlp.{name}_proj" for name in ("gate", "up", "down")]
        weights = [state[f"{name}.weight"] for name in names]
        biases = [state[f"{name}.bias"] if content["mlp_bias"] else None for name in names]
        used |= {f"{name}.weight" for name in names}
        used |= {f"{name}.bias" for name in names if content["mlp_bias"]}
        assert len(weights[0]) == width_of(block["ffn"], config.hidden_size)
        read = norm(hidden, f"{prefix}.post_attention_layernorm.weight")
        gate, up = (functional.linear(read, weight, bias) for weight, bias in zip(weights[:2], biases[:2], strict=True))
        hidden = hidden + functional.linear(functional.silu(gate) * up, weights[2], biases[2])
    head = "model.embed_tokens.weight" if content["tie_word_embeddings"] else "lm_head.weight"
    used.add(head)
    assert used == set(state)
    return functional.linear(norm(hidden, "model.norm.weight"), state[head])


def write(folder: Path, model: LoadedModel, edit) -> Path:
    save_checkpoint(folder, model, edit, save_format="nemotron_nas")
    return folder


def three():
    torch.manual_seed(1)
    first, last = linear(rank=5), linear(bias=True)
    return edit_of([1, 3, 4, 7], [(on_stream(1, 2), first), (on_stream(3, 5), mlp(bias=True)), (on_stream(7, 8), last)])


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "one"), ("tied", "mlp"), ("mistral", "three"), ("llama", "sublayers")]
)
def test_the_loaders_rules_give_the_same_logits(family, name, tmp_path):
    model, edit = loaded(family), three() if name == "three" else edits()[name]
    folder = write(tmp_path / "M", model, edit)
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected = edit.view(model.decoder)(tokens, use_cache=False).logits
    found = logits_of(folder, tokens)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_its_configuration_is_read_with_attributes(tmp_path):
    folder = write(tmp_path / "M", loaded(), three())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert [block.attention.no_op for block in config.block_configs] == [False, True, False, True, False, False, True]
    assert config.block_configs[1].ffn.ffn_mult > 0
    assert not hasattr(config.block_configs[1].ffn, "intermediate_size")
    assert config.to_dict()["block_configs"][0]["attention"]["n_heads_in_group"] == 2
    assert AutoTokenizer.from_pretrained(folder, config=LlamaConfig())("abc").input_ids


def test_without_linear_maps_no_layer_has_biases(tmp_path):
    folder = write(tmp_path / "M", loaded(), edits()["mlp"])
    assert json.loads((folder / "config.json").read_text())["mlp_bias"] is False
    assert not any(name.endswith("bias") for name in load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("hidden_size", [32, 576, 2048, 4096])
@pytest.mark.parametrize("width", [1, 48, 256, 576, 1536, 14336])
def test_loaders_compute_the_width_that_is_written(width, hidden_size):
    assert width <= padded(width) < width + 256
    assert width_of({"ffn_mult": multiple_of(padded(width), hidden_size)}, hidden_size) == padded(width)


def test_this_package_says_what_loads_it(tmp_path):
    folder = write(tmp_path / "M", loaded(), three())
    assert "as layers of their own" in (folder / "README.md").read_text()
    with pytest.raises(StorageError, match="vllm serve"):
        linearpatch.load(folder)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("qwen3", {}, "family qwen3"),
        ("mistral", {"sliding_window": 8}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"head_dim": 16}, "heads of 16 channels"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "type yarn"),
    ],
)
def test_what_the_loaders_lack_is_rejected_by_name(family, changes, named):
    with pytest.raises(ModelError, match=named):
        check_family(config_of(family, **changes))


def test_other_models_and_patches_are_rejected_before_anything_is_written(tmp_path):
    model = loaded()
    with pytest.raises(ModelError, match="first layer without attention"):
        write(tmp_path / "M", model, edit_of([0], [(on_stream(0, 1), linear())]))
    with pytest.raises(ModelError, match="can't hold these patches"):
        write(tmp_path / "M", model, edit_of([2], [(on_stream(2, 3), LinearMap(torch.eye(32)))]))
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(config_of("qwen2")).eval()
    other = LoadedModel(decoder_of(other), byte_tokenizer(), "0123456789abcdef")
    with pytest.raises(ModelError, match="family qwen2"):
        write(tmp_path / "M", other, edit_of([2]))
    assert not list(tmp_path.iterdir())


def test_a_new_weight_before_the_interface_is_in_it(tmp_path):
    model = loaded()
    edit = edit_of([2, 3], [(in_projection(2, 4), LinearMap(torch.randn(48, 32))), (on_stream(2, 4), linear())])
    state = load_file(write(tmp_path / "M", model, edit) / "model.safetensors")
    expected = model.decoder.layers[1].mlp.down_proj.weight + edit.operators[0].module.weight
    assert torch.allclose(state["model.layers.1.mlp.down_proj.weight"][:, :48], expected)
    assert isinstance(mlp(), GatedMlp)
    assert json.loads((tmp_path / "M" / "config.json").read_text())["rms_norm_eps"] == EPSILON
