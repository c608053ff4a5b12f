"""Which families llama.cpp computes as transformers does, and the names and order of their weights in a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from linearpatch.checkpoint.new_layers import removed_part
from linearpatch.errors import ModelError
from linearpatch.models.decoder import text_config
from linearpatch.models.offload import read_parameter
from linearpatch.models.sublayers import ATTENTION, MLP

ROTARY_TYPES = ("default", "linear", "llama3")
OTHER_FORMATS = "Use save_format=plain, custom or adapter."
STOCK_EDIT = (
    "Remove whole layers and use a patch that folds into stock weights, such as patch=mlp_refit, or save_format=custom "
    "or adapter."
)


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp.

    Attributes:
        name: llama.cpp's name for it.
        interleaved: Whether llama.cpp rotates neighbouring channels of a head where transformers rotates a channel of
            its first half with one of its second, so that rows of the queries' and keys' weights change places.
        attention_bias: Whether queries, keys and values have biases.
        head_norms: Whether each head of queries and keys is normalised.
    """

    name: str
    interleaved: bool
    attention_bias: bool = False
    head_norms: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", interleaved=False, attention_bias=True),
    "qwen3": Architecture("qwen3", interleaved=False, head_norms=True),
}

# The architecture whose layers may each be of another kind, and how it computes a family.
WITH_MIXED_LAYERS = {
    "llama": Architecture("deci", interleaved=True),
    "mistral": Architecture("deci", interleaved=True),
    "qwen2": Architecture("deci", interleaved=True, attention_bias=True),
}


def architecture_of(config: Any, *, mixed_layers: bool = False) -> Architecture:
    """How llama.cpp computes the models of a configuration.

    Args:
        config: As transformers has it.
        mixed_layers: Whether layers lack a sublayer, or are patches.

    Raises:
        ModelError: it can't, or only approximately; names the family or the setting.
    """
    config = text_config(config)
    family = config.model_type
    known = WITH_MIXED_LAYERS if mixed_layers else ARCHITECTURES
    if family not in known:
        with_what = " with layers that lack a sublayer, or patches as layers of their own" if mixed_layers else ""
        raise ModelError(
            f"save_format=gguf can't hold models of the family {family}{with_what}. Families that it can: "
            f"{', '.join(known)}. {STOCK_EDIT if mixed_layers and family in ARCHITECTURES else OTHER_FORMATS}"
        )
    architecture = known[family]
    rotary = rotary_of(config)
    rotary_type = rotary.get("rope_type", "default")
    if rotary_type not in ROTARY_TYPES:
        raise ModelError(
            f"save_format=gguf can't hold rotary embeddings of type {rotary_type} ({family}). Allowed: "
            f"{', '.join(ROTARY_TYPES)}. {OTHER_FORMATS}"
        )
    differences = {
        f"hidden_act={config.hidden_act}": config.hidden_act != "silu",
        "attention_bias=true": getattr(config, "attention_bias", False),
        "mlp_bias=true": getattr(config, "mlp_bias", False),
        "partial_rotary_factor": (rotary.get("partial_rotary_factor") or 1) != 1,
        "layer_types with sliding attention": any(
            kind != "full_attention" for kind in getattr(config, "layer_types", None) or () if family != "mistral"
        ),
    }
    for setting, differs in differences.items():
        if differs:
            raise ModelError(
                f"save_format=gguf can't hold this {family} model: llama.cpp computes the family without {setting}. "
                f"{OTHER_FORMATS}"
            )
    return architecture


def rotary_of(config: Any) -> dict[str, Any]:
    """The settings of the rotary embeddings."""
    return dict(config.rope_parameters)


def context_length(config: Any) -> int:
    """How many tokens the model reads as llama.cpp does: no more than its sliding window, which llama.cpp lacks."""
    longest = int(config.max_position_embeddings)
    return min(longest, getattr(config, "sliding_window", None) or longest)


def head_size(config: Any) -> int:
    """Channels of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotary_factors(config: Any) -> Tensor | None:
    """By how much each rotary frequency is divided, `[head_size / 2]`; None where GGUF describes them by numbers."""
    rotary = rotary_of(config)
    if rotary.get("rope_type") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_size(config)
    plain = rotary["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    factors: Tensor = (plain / scaled.double()).float()
    return factors


Named = tuple[str, Callable[[], Tensor]]


def outer_tensors(model: Any, config: Any) -> Iterator[Named]:
    """Names in GGUF and values of all that isn't a layer's."""
    yield "token_embd.weight", partial(read_parameter, model.get_input_embeddings(), "weight")
    yield "output_norm.weight", partial(read_parameter, model.model.norm, "weight")
    if not config.tie_word_embeddings:
        yield "output.weight", partial(read_parameter, model.get_output_embeddings(), "weight")
    factors = rotary_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", lambda: factors


def layer_tensors(layer: Any, index: int, architecture: Architecture, config: Any) -> Iterator[Named]:
    """Names in GGUF and values of a layer, of the sublayers that it has."""
    attention, mlp, removed = layer.self_attn, layer.mlp, removed_part(layer)
    modules: list[tuple[str, nn.Module, int]] = []
    if removed != ATTENTION:
        modules += [
            ("attn_norm", layer.input_layernorm, 0),
            ("attn_q", attention.q_proj, config.num_attention_heads),
            ("attn_k", attention.k_proj, config.num_key_value_heads),
            ("attn_v", attention.v_proj, 0),
            ("attn_output", attention.o_proj, 0),
        ]
        if architecture.head_norms:
            modules += [("attn_q_norm", attention.q_norm, 0), ("attn_k_norm", attention.k_norm, 0)]
    if removed != MLP:
        modules += [
            ("ffn_norm", layer.post_attention_layernorm, 0),
            ("ffn_gate", mlp.gate_proj, 0),
            ("ffn_up", mlp.up_proj, 0),
            ("ffn_down", mlp.down_proj, 0),
        ]
    for name, module, heads in modules:
        for part in ("weight", "bias"):
            if getattr(module, part, None) is not None:
                heads = heads if architecture.interleaved else 0
                yield f"blk.{index}.{name}.{part}", partial(_value, module, part, heads)


def _value(module: nn.Module, part: str, heads: int) -> Tensor:
    value = read_parameter(module, part)
    return interleaved(value, heads) if heads else value


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a head in the order 0, h/2, 1, h/2 + 1, …: channels that rotate together become neighbours.

    Args:
        weight: `[heads · h, …]`.
        heads: Their number.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
