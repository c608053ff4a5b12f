"""Layers of a GGUF file: those of the model, and patches as layers of their own.

llama.cpp's architecture `deci` has layers of three kinds beside the usual one. Without heads there is no attention, and
the MLP adds to the stream. With heads but no key-value heads the attention is one matrix that the normed stream is
multiplied by. Without hidden units a layer does nothing, and so one without an MLP has a few that are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.checkpoint.gguf.architecture import Architecture, Named, layer_tensors
from linearpatch.checkpoint.new_layers import matrix_of, removed_part
from linearpatch.errors import ModelError
from linearpatch.models.modeling_linearpatch import ChannelShift, FeatureMap, GatedMlp
from linearpatch.models.sublayers import ATTENTION, MLP

IDLE_UNITS = 32  # of the MLP of a layer that has none: a block of the types that pack weights


@dataclass(frozen=True)
class LayerSizes:
    """What a file says of a layer.

    Attributes:
        heads: Of its attention; 0: it has none.
        key_value_heads: 0, where there are heads: its attention is a matrix.
        width: Hidden units of its MLP.
    """

    heads: int
    key_value_heads: int
    width: int


def sizes_of(layer: nn.Module, config: Any) -> LayerSizes:
    """The sizes of a layer of the model, or of an operator that is one."""
    if isinstance(layer, FeatureMap):
        return LayerSizes(config.num_attention_heads, 0, IDLE_UNITS)
    if isinstance(layer, GatedMlp):
        return LayerSizes(0, 0, layer.down.shape[1])
    if isinstance(layer, ChannelShift):
        return LayerSizes(0, 0, IDLE_UNITS)
    removed = removed_part(layer)
    width = IDLE_UNITS if removed == MLP else config.intermediate_size
    if removed == ATTENTION:
        return LayerSizes(0, 0, width)
    return LayerSizes(config.num_attention_heads, config.num_key_value_heads, width)


def check_order(layers: Sequence[LayerSizes]) -> None:
    """Reject a first layer without attention, whose heads llama.cpp takes the size of a head from.

    Raises:
        ModelError: says so.
    """
    if layers[0].heads == 0:
        raise ModelError(
            "save_format=gguf can't hold a first layer without attention: llama.cpp needs heads there. Keep layer 0: "
            "set pruner.protect_first=1, or use save_format=custom or adapter."
        )


def tensors_of(layer: nn.Module, index: int, architecture: Architecture, config: Any) -> list[Named]:
    """Names in a file and values of a layer of the model, or of an operator that is one."""
    size = config.hidden_size
    shapes = {"ffn_gate": (IDLE_UNITS, size), "ffn_up": (IDLE_UNITS, size), "ffn_down": (size, IDLE_UNITS)}
    idle: dict[str, Callable[[], Tensor]] = {
        "ffn_norm.weight": partial(torch.ones, size),
        **{f"{name}.weight": partial(torch.zeros, shape) for name, shape in shapes.items()},
    }
    values: dict[str, Callable[[], Tensor]]
    if isinstance(layer, FeatureMap):
        matrix = {"attn_norm.weight": partial(torch.ones, size), "attn_output.weight": partial(matrix_of, layer)}
        values = {**matrix, **idle}
    elif isinstance(layer, ChannelShift):
        values = dict(idle)
    elif isinstance(layer, GatedMlp):
        values = {
            "ffn_norm.weight": partial(torch.ones, size),
            "ffn_gate.weight": partial(_value, layer.gate),
            "ffn_up.weight": partial(_value, layer.up),
            "ffn_down.weight": partial(_value, layer.down),
        }
    else:
        own = list(layer_tensors(layer, index, architecture, config))
        added = idle if removed_part(layer) == MLP else {}
        return [*own, *((f"blk.{index}.{name}", value) for name, value in added.items())]
    if layer.bias is not None:
        values["ffn_down.bias"] = partial(_value, layer.bias)
    return [(f"blk.{index}.{name}", value) for name, value in values.items()]


def _value(parameter: Tensor) -> Tensor:
    return parameter.detach()
