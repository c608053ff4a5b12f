"""A model whose layers are of several kinds as a checkpoint of `nemotron-nas`: vLLM and MLX compute that family.

`block_configs` says of each layer whether it has attention and how wide its MLP is; tensors have Llama's names. A layer
that only has an MLP holds a patch: the small MLP itself, a linear map as one whose gates are constant, or a constant as
its bias. Layers of the model that lost a sublayer are without it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.nn import functional

from linearpatch.checkpoint.new_layers import LayeredModel, removed_part
from linearpatch.errors import ModelError
from linearpatch.models import configuration_nemotron_nas
from linearpatch.models.configuration_nemotron_nas import NemotronNasConfig
from linearpatch.models.decoder import text_config
from linearpatch.models.modeling_linearpatch import ChannelShift, FeatureMap, GatedMlp, Operator
from linearpatch.models.offload import read_parameter
from linearpatch.models.sublayers import ATTENTION, MLP

FAMILIES = ("llama", "mistral")
ROTARY_TYPES = ("default", "linear", "llama3")
OTHER_FORMATS = "Use save_format=gguf, custom or adapter."
WIDTH_STEP = 256  # loaders round the width that they compute from `ffn_mult` up to a multiple of it
GATE = 1.2784645  # whose SiLU is one
MATRICES = ("gate_proj", "up_proj", "down_proj")


def check_family(config: Any) -> None:
    """Reject a model that the family's loaders would compute otherwise.

    Args:
        config: Of the dense model, as transformers has it.

    Raises:
        ModelError: names the family or the setting.
    """
    config = text_config(config)
    family = config.model_type
    if family not in FAMILIES:
        raise ModelError(
            f"save_format=nemotron_nas can't hold models of the family {family}. Families that it can: "
            f"{', '.join(FAMILIES)}. {OTHER_FORMATS}"
        )
    rotary = dict(config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    differences = {
        f"hidden_act={config.hidden_act}": config.hidden_act != "silu",
        "attention_bias=true": getattr(config, "attention_bias", False),
        "mlp_bias=true": getattr(config, "mlp_bias", False),
        "a sliding window": (getattr(config, "sliding_window", None) or inf) < config.max_position_embeddings,
        f"rotary embeddings of type {rotary.get('rope_type')}": rotary.get("rope_type", "default") not in ROTARY_TYPES,
        f"heads of {head_dim} channels": head_dim * config.num_attention_heads != config.hidden_size,
    }
    for setting, differs in differences.items():
        if differs:
            raise ModelError(
                f"save_format=nemotron_nas can't hold this {family} model: the family is computed without {setting}. "
                f"{OTHER_FORMATS}"
            )


def write_nemotron_nas(folder: Path, layered: LayeredModel) -> None:
    """Write configuration and weights.

    Args:
        folder: Where to.
        layered: Of a family that `check_family` knows.

    Raises:
        ModelError: the first layer has no attention, which vLLM needs.
    """
    if isinstance(layered.layers[0], Operator) or removed_part(layered.layers[0]) == ATTENTION:
        raise ModelError(
            "save_format=nemotron_nas can't hold a first layer without attention: vLLM needs it there. Keep layer 0: "
            f"set pruner.protect_first=1. {OTHER_FORMATS}"
        )
    with_bias = any(isinstance(layer, FeatureMap | ChannelShift) or _has_bias(layer) for layer in layered.layers)
    content = config_content(layered, with_bias=with_bias)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    source = inspect.getsource(configuration_nemotron_nas)
    (folder / f"{CONFIG_MODULE}.py").write_text(source, encoding="utf-8")
    save_torch_state_dict(dict(state(layered, with_bias=with_bias)), folder, metadata={"format": "pt"})


CONFIG_MODULE = configuration_nemotron_nas.__name__.rpartition(".")[2]


def config_content(layered: LayeredModel, *, with_bias: bool) -> dict[str, Any]:
    """What config.json says.

    Args:
        layered: The model.
        with_bias: Whether MLPs have biases: all or none.
    """
    config = layered.config
    rotary = dict(config.rope_parameters)
    scaling = None if rotary.get("rope_type", "default") == "default" else rotary
    kept = (
        "hidden_size", "num_attention_heads", "rms_norm_eps", "vocab_size", "hidden_act", "max_position_embeddings",
        "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "intermediate_size",
        "num_key_value_heads",
    )  # fmt: skip
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": NemotronNasConfig.model_type,
        "auto_map": {"AutoConfig": f"{CONFIG_MODULE}.{NemotronNasConfig.__name__}"},
        **{name: getattr(config, name) for name in kept},
        "num_hidden_layers": len(layered.layers),
        "attention_bias": False,
        "mlp_bias": with_bias,
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": scaling,
        "rope_parameters": rotary,
        "torch_dtype": str(layered.model.dtype).removeprefix("torch."),
        "block_configs": [_block(layer, config) for layer in layered.layers],
    }


def _block(layer: nn.Module, config: Any) -> dict[str, Any]:
    removed = removed_part(layer)
    without_attention, without_mlp = isinstance(layer, Operator) or removed == ATTENTION, removed == MLP
    group = None if without_attention else config.num_attention_heads // config.num_key_value_heads
    factor = None if without_mlp else multiple_of(padded(_width(layer)), config.hidden_size)
    return {
        "attention": {"no_op": without_attention, "replace_with_linear": False, "n_heads_in_group": group},
        "ffn": {"no_op": without_mlp, "replace_with_linear": False, "ffn_mult": factor},
    }


def padded(width: int) -> int:
    """A width that loaders can compute; what is added to an MLP are units that do nothing."""
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def multiple_of(width: int, hidden_size: int) -> float:
    """`ffn_mult`, of which loaders compute a width: two thirds of that many hidden sizes, rounded up; see `padded`."""
    return round(3 * (width - WIDTH_STEP / 2) / (2 * hidden_size), 6)


def _width(layer: nn.Module) -> int:
    if isinstance(layer, ChannelShift):
        return 1
    if isinstance(layer, FeatureMap):
        return len(layer.weights[0])
    down = layer.down if isinstance(layer, GatedMlp) else layer.get_parameter("mlp.down_proj.weight")
    return int(down.shape[1])


def _has_bias(layer: nn.Module) -> bool:
    return isinstance(layer, GatedMlp) and layer.bias is not None


@torch.no_grad()
def state(layered: LayeredModel, *, with_bias: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all tensors, in the model's precision."""
    model: Any = layered.model
    dtype = model.dtype
    yield "model.embed_tokens.weight", read_parameter(model.get_input_embeddings(), "weight").detach()
    yield "model.norm.weight", read_parameter(model.model.norm, "weight").detach()
    if not layered.config.tie_word_embeddings:
        yield "lm_head.weight", read_parameter(model.get_output_embeddings(), "weight").detach()
    for index, layer in enumerate(layered.layers):
        values = dict(_layer_values(layer, model.config.hidden_size))
        if removed_part(layer) != MLP:
            values |= dict(_padded_mlp(values, with_bias=with_bias))
        for name, value in values.items():
            yield f"model.layers.{index}.{name}", value.to(dtype).cpu().contiguous()


def _layer_values(layer: nn.Module, size: int) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(layer, FeatureMap | GatedMlp | ChannelShift):
        for path, module in layer.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                yield f"{path}.{name}", read_parameter(module, name).detach()
        return
    yield "post_attention_layernorm.weight", torch.ones(size)
    gate: Tensor
    up: Tensor
    down: Tensor
    if isinstance(layer, GatedMlp):
        gate, up, down = layer.gate, layer.up, layer.down
    elif isinstance(layer, ChannelShift):
        gate, up, down = torch.zeros(1, size), torch.zeros(1, size), torch.zeros(size, 1)
    else:
        *first, last = [weight.float() for weight in layer.weights]
        up, down = (first[0], last) if first else (last, torch.eye(size))
        gate = torch.zeros_like(up)
        bias = torch.tensor(GATE).to(layer.weights[0].dtype)  # as it will be stored
        up = up / functional.silu(bias.float())
        yield "mlp.gate_proj.bias", bias.expand(len(up))
    for name, value in zip(MATRICES, (gate, up, down), strict=True):
        yield f"mlp.{name}.weight", value
    if layer.bias is not None:
        yield "mlp.down_proj.bias", layer.bias


def _padded_mlp(values: dict[str, Tensor], *, with_bias: bool) -> Iterator[tuple[str, Tensor]]:
    """The MLP's tensors with idle units, and with biases where all MLPs have them."""
    weights = {name: values[f"mlp.{name}.weight"] for name in MATRICES}
    size, width = weights["down_proj"].shape
    idle = padded(width) - width
    for name, weight in weights.items():
        yield f"mlp.{name}.weight", functional.pad(weight, (0, idle) if name == "down_proj" else (0, 0, 0, idle))
        if with_bias:
            inside = name != "down_proj"
            bias = values.get(f"mlp.{name}.bias", weight.new_zeros(width if inside else size))
            yield f"mlp.{name}.bias", functional.pad(bias, (0, idle)) if inside else bias
