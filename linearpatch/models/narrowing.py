"""Layers that lose attention heads and MLP channels, not themselves: what width pruning removes.

A head here is one of keys and values with all query heads that read it, so that grouped-query attention stays grouped
as it was. Removing it takes its rows of the projections to queries, keys and values and its columns of the output
projection; removing a channel takes its rows of the gate and up projections and its column of the down projection. The
narrowed model computes what the whole one does with these columns set to zero.

Our own slicing, not torch-pruning's. Version 1.6.1, given the numbers of heads as its arguments have it, left a tiny
Llama of 8 query heads over 2 key-value heads with 3 query heads over 2, which can't run, and narrowed the residual
stream as well. It also takes the model apart in place and needs the gradients of all weights at once, where a view
shares what is unchanged with a dense model that stays as it is, and importance needs one layer's gradients at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder
from linearpatch.models.offload import replace_parameter

ATTENTION, MLP = "self_attn", "mlp"
QUERY, KEYS, OUTPUT = "q_proj", ("k_proj", "v_proj"), "o_proj"
WIDENING, DOWN = ("gate_proj", "up_proj"), "down_proj"


@dataclass(frozen=True, order=True)
class NarrowedLayer:
    """What stays of a layer that loses heads and channels.

    Attributes:
        layer: Dense index.
        heads: Key-value heads that stay, ascending, each with its query heads.
        channels: MLP channels that stay, ascending.
    """

    layer: int
    heads: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class LayerWidths:
    """How wide a layer is.

    Attributes:
        num_heads: Heads of keys and values.
        queries: Query heads that read each.
        head_size: Numbers in a head.
        num_channels: Of its MLP.
        head_parameters: Parameters that go with a head …
        channel_parameters: … and with a channel.
    """

    num_heads: int
    queries: int
    head_size: int
    num_channels: int
    head_parameters: int
    channel_parameters: int

    def parameters_removed(self, narrowed: NarrowedLayer) -> int:
        """Parameters that a layer of these widths loses."""
        heads = self.num_heads - len(narrowed.heads)
        channels = self.num_channels - len(narrowed.channels)
        return heads * self.head_parameters + channels * self.channel_parameters

    def query_channels(self, heads: Sequence[int]) -> Tensor:
        """Indices of the outputs of the query projection that belong to some heads."""
        return _expanded(heads, self.queries * self.head_size)

    def key_channels(self, heads: Sequence[int]) -> Tensor:
        """Indices of the outputs of the key and value projections that belong to some heads."""
        return _expanded(heads, self.head_size)


def projections_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """The seven matrices of a layer by their names in it, as Llama and most families after it have them.

    Raises:
        ModelError: the layer keeps its heads and channels otherwise.
    """
    names = [f"{ATTENTION}.{name}" for name in (QUERY, *KEYS, OUTPUT)] + [f"{MLP}.{name}" for name in (*WIDENING, DOWN)]
    modules = dict(layer.named_modules())
    missing = [name for name in names if not isinstance(modules.get(name), nn.Linear)]
    if missing:
        raise ModelError(
            f"{type(layer).__name__} has no matrix {', '.join(missing)}, so its heads and channels can't be "
            "separated. Removing them needs a family with separate projections for queries, keys, values, gate and up, "
            "such as Llama, Qwen, Mistral or Gemma; other pruners remove whole layers of any family."
        )
    return {name: modules[name] for name in names}


def widths_of(decoder: Decoder, index: int) -> LayerWidths:
    """How wide a layer is.

    Raises:
        ModelError: the layer keeps its heads and channels in another way than Llama.
    """
    layer = decoder.layers[index]
    matrices = projections_of(layer)
    head_size = int(getattr(layer.get_submodule(ATTENTION), "head_dim", 0))
    keys, queries = matrices[f"{ATTENTION}.k_proj"], matrices[f"{ATTENTION}.{QUERY}"]
    heads = keys.out_features // head_size if head_size else 0
    if not heads or keys.out_features % head_size or queries.out_features % keys.out_features:
        raise ModelError(
            f"{type(layer).__name__} has projections of {queries.out_features} and {keys.out_features} outputs with "
            f"heads of {head_size}, which aren't groups of heads. Use a pruner that removes whole layers."
        )
    group = queries.out_features // keys.out_features
    sizes = {name: sum(p.numel() for p in _sliced(matrix, name).values()) for name, matrix in matrices.items()}
    attention = sum(size for name, size in sizes.items() if name.startswith(ATTENTION))
    mlp = sum(size for name, size in sizes.items() if name.startswith(MLP))
    channels = matrices[f"{MLP}.{DOWN}"].in_features
    return LayerWidths(heads, group, head_size, channels, attention // heads, mlp // channels)


@torch.no_grad()
def narrow(view: Decoder, index: int, widths: LayerWidths, narrowed: NarrowedLayer) -> dict[str, tuple[int, int]]:
    """Give a layer of a view narrower matrices; the dense model keeps its own.

    Args:
        view: Owns its modules.
        index: Of the layer in the view.
        widths: Of the layer.
        narrowed: What stays.

    Returns:
        Sizes of its matrices, outputs and inputs, by their names in the model.

    Raises:
        ModelError: its weights aren't in memory.
    """
    layer = view.layers[index]
    sizes: dict[str, tuple[int, int]] = {}
    for name, matrix in projections_of(layer).items():
        if matrix.weight.is_meta:
            raise ModelError(
                "Heads and channels can't be removed from weights that are offloaded to CPU memory or disk. Leave "
                "model.device_map out, or use a pruner that removes whole layers."
            )
        kept = _kept(name, widths, narrowed).to(matrix.weight.device)
        dim = _dimension(name)
        for parameter, value in _sliced(matrix, name).items():
            replace_parameter(matrix, parameter, value.index_select(dim, kept))
        matrix.out_features, matrix.in_features = matrix.weight.shape
        sizes[f"{view.parts.layers}.{index}.{name}"] = (matrix.out_features, matrix.in_features)
    return sizes


@contextmanager
def masked(dense: Decoder, narrowed: Sequence[NarrowedLayer]) -> Iterator[None]:
    """While open, what the removed heads and channels write is zero: the slow way to run a narrowed model."""
    with ExitStack() as stack:
        for narrowed_layer in narrowed:
            widths, matrices = (
                widths_of(dense, narrowed_layer.layer),
                projections_of(dense.layers[narrowed_layer.layer]),
            )
            for name in (f"{ATTENTION}.{OUTPUT}", f"{MLP}.{DOWN}"):
                mask = torch.zeros(matrices[name].in_features, device=matrices[name].weight.device)
                mask[_kept(name, widths, narrowed_layer).to(mask.device)] = 1
                handle = matrices[name].register_forward_pre_hook(_masking(mask))
                stack.callback(handle.remove)
        yield


def _masking(mask: Tensor) -> Any:
    return lambda _, args: (args[0] * mask.to(args[0].dtype), *args[1:])


def _kept(name: str, widths: LayerWidths, narrowed: NarrowedLayer) -> Tensor:
    """Indices of what stays of a matrix, along the dimension that shrinks."""
    part, _, matrix = name.partition(".")
    if part == MLP:
        return torch.tensor(narrowed.channels)
    return widths.key_channels(narrowed.heads) if matrix in KEYS else widths.query_channels(narrowed.heads)


def _dimension(name: str) -> int:
    """The dimension of a matrix that shrinks: inputs of those that write to the stream, outputs of the others."""
    return 1 if name.endswith((OUTPUT, DOWN)) else 0


def _sliced(matrix: nn.Linear, name: str) -> Mapping[str, Tensor]:
    """The parameters of a matrix that shrink: its weight, and the bias where outputs go."""
    own = dict(matrix.named_parameters(recurse=False))
    return own if _dimension(name) == 0 else {"weight": own["weight"]}


def _expanded(indices: Sequence[int], size: int) -> Tensor:
    return (torch.tensor(indices)[:, None] * size + torch.arange(size)).flatten()
