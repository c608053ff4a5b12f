"""The modules through which a layer writes to the stream: what its attention adds, and what its MLP adds.

Where a patch can be folded into existing weights, it is folded into these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from linearpatch.errors import ModelError
from linearpatch.models.offload import read_parameter, replace_parameter

# The last product of each branch, by the names that families give it.
ATTENTION = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "self_attention.dense",
    "attention.dense",
    "attn.out_proj",
    "attn.c_proj",
)
MLP = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "mlp.fc2", "mlp.c_proj", "fc2")

# Mixtures of experts, whose output as a whole is added.
EXPERTS = ("mlp", "block_sparse_moe", "feed_forward")

# Norms that stand between each branch and the stream (Gemma 2 and 3). The first name alone says nothing:
# most families give it to the norm before the MLP.
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Writers:
    """What a layer adds to the stream is the sum of the outputs of two modules.

    Attributes:
        attention: The attention's last product, or the norm after it.
        mlp: The MLP's last product, a whole mixture of experts, or the norm after it.
        normed: Whether both are norms.
    """

    attention: nn.Module
    mlp: nn.Module
    normed: bool


def writers_of(layer: nn.Module) -> Writers:
    """Find the writers of a decoder layer.

    Raises:
        ModelError: its modules have names that aren't known here.
    """
    modules = dict(layer.named_modules())
    if "pre_feedforward_layernorm" in modules and all(name in modules for name in POST_NORMS):
        attention_norm, mlp_norm = (modules[name] for name in POST_NORMS)
        return Writers(attention_norm, mlp_norm, normed=True)
    attention = [modules[name] for name in ATTENTION if name in modules]
    mlp = [modules[name] for name in MLP if name in modules]
    mlp += [modules[name] for name in EXPERTS if f"{name}.experts" in modules]
    post_norms = [name for name in modules if re.fullmatch(r"post_\w*norm", name) and name != POST_NORMS[0]]
    if len(attention) != 1 or len(mlp) != 1 or post_norms:
        raise ModelError(
            f"{type(layer).__name__} adds to the stream in a way this version doesn't know (its parts: "
            f"{', '.join(name for name, _ in layer.named_children())}), so nothing can be folded into its weights or "
            "fitted there. Use a patch on the stream, such as patch=lstsq, and save_format=custom or adapter for it."
        )
    return Writers(attention[0], mlp[0], normed=False)


def mlp_writer(layer: nn.Module) -> nn.Module:
    """The module whose output, as it is, is what the layer's MLP adds to the stream.

    Raises:
        ModelError: a norm stands between them, so that no matrix on the output could become part of a weight.
    """
    writers = writers_of(layer)
    if writers.normed:
        raise ModelError(
            f"{type(layer).__name__} normalises its MLP's output before adding it, so no matrix on that output can be "
            "folded into its weights. Use patch=scalar, or a patch on the stream such as patch=lstsq."
        )
    return writers.mlp


def mlp_product(layer: nn.Module) -> nn.Module:
    """The single product by which the layer's MLP writes to the stream.

    Raises:
        ModelError: the MLP is a mixture of experts, or a norm stands between it and the stream.
    """
    writer = mlp_writer(layer)
    if hasattr(writer, "experts"):
        raise ModelError(
            f"{type(layer).__name__} has a mixture of experts, each with a last product of its own, and not one weight "
            "that could be fitted anew. Use a patch on the stream, such as patch=lstsq."
        )
    return writer


@torch.no_grad()
def add_to_mlp_weight(layer: nn.Module, patch: nn.Module) -> None:
    """Give a layer of a view an MLP whose last product does the work of a patch, too.

    Args:
        layer: A layer of a view; the dense model keeps its weight.
        patch: A `LinearMap` without bias, from what the product reads to the stream.
    """
    product = mlp_product(layer)
    weight, added = read_parameter(product, "weight").double(), patch.get_parameter("weight").double()
    added = added.to(weight.device)
    replace_parameter(product, "weight", weight + (added.T if isinstance(product, Conv1D) else added))


@contextmanager
def patched_mlp(layer: nn.Module, patches: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
    """While open, patches act on what a layer's MLP writes.

    Args:
        layer: A decoder layer.
        patches: `mlp` and a map of what the MLP adds, or `mlp_weight` and a map beside its last product.
    """

    def mapped(patch: nn.Module) -> Any:
        def after_forward(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (patch(output[0]), *output[1:]) if isinstance(output, tuple) else patch(output)

        return after_forward

    def beside(patch: nn.Module) -> Any:
        return lambda _, args, output: output + patch(args[0])

    with ExitStack() as stack:
        for branch, patch in patches:
            hook = mapped(patch) if branch == "mlp" else beside(patch)
            writer = mlp_writer(layer) if branch == "mlp" else mlp_product(layer)
            stack.callback(writer.register_forward_hook(hook).remove)
        yield
