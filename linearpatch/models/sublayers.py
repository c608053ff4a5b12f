"""A layer as updates of the residual stream: its attention and its MLP, found by watching one forward pass.

A layer adds a multiple of the outputs of two modules to what it reads. Families name these modules differently, and
put norms, dropouts or mixtures of experts around them; the sum says which they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, split_call, unwrap
from linearpatch.models.tracing import check_tokens

MATRICES = (nn.Linear, Conv1D)

# Where a layer keeps what was found, so that its copies in views needn't be traced again.
_MEMORY = "_linearpatch_sublayers"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the sum, relative to what the layer adds …
HALF_TOLERANCE = 5e-2  # … in half precision, where the stream is rounded once more


@dataclass(frozen=True)
class Sublayer:
    """The attention or the MLP of a layer: it reads the residual stream and adds to it.

    Attributes:
        output: The module whose output is added.
        multiplier: What that is multiplied by first (Granite's `residual_multiplier`).
    """

    output: nn.Module
    multiplier: float = 1.0

    @property
    def projection(self) -> nn.Module | None:
        """The output projection, where the output is that of one matrix; None for a norm or a mixture of experts."""
        matrix = getattr(self.output, "base_layer", self.output)  # which peft's LoRA layers stand around
        return self.output if isinstance(matrix, MATRICES) else None

    @property
    def is_norm(self) -> bool:
        """Whether a norm of its own stands between the sublayer and the stream (Gemma 2 and 3)."""
        parameters = list(self.output.parameters())
        return bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)


@dataclass(frozen=True)
class Sublayers:
    """The two sublayers of a layer, in the order in which they run."""

    attention: Sublayer
    mlp: Sublayer


def sublayers_of(decoder: Decoder, index: int) -> Sublayers:
    """The sublayers of a layer; the first call for a model runs a few tokens through it.

    Raises:
        ModelError: the layer doesn't add the outputs of two of its modules to the stream.
    """
    layer = decoder.layers[index]
    if _MEMORY not in layer.__dict__:
        _trace(decoder)
    names, multiplier = layer.__dict__[_MEMORY]
    if names is None:
        raise ModelError(
            f"{type(layer).__name__} adds to the stream in a way this version doesn't know (its parts: "
            f"{', '.join(name for name, _ in layer.named_children())}), so nothing can be folded into its weights or "
            "fitted there. Use a patch on the stream, such as patch=lstsq, and save_format=custom or adapter for it."
        )
    attention, mlp = (Sublayer(layer.get_submodule(name), multiplier) for name in names)
    return Sublayers(attention, mlp)


def remember_sublayers(decoder: Decoder) -> None:
    """Find the sublayers of all layers, so that copies of a layer know theirs without the model around them."""
    if any(_MEMORY not in layer.__dict__ for layer in decoder.layers):
        _trace(decoder)


@torch.no_grad()
def _trace(decoder: Decoder) -> None:
    """Find the sublayers of all layers, and remember them there."""
    with _watching(decoder.layers) as seen:
        decoder.hidden_states(decoder.forward(check_tokens(decoder.model), use_cache=False))
    for layer, (read, written, outputs) in zip(decoder.layers, seen, strict=True):
        layer.__dict__[_MEMORY] = _decompose(read, written, outputs, (1.0, decoder.residual_multiplier))


@contextmanager
def _watching(layers: nn.ModuleList) -> Iterator[list[tuple[Tensor, Tensor, list[tuple[str, bool, Tensor]]]]]:
    """While open, keep for each layer what it reads and writes, and what its modules write, in the order they ended."""
    seen: list[tuple[Tensor, Tensor, list[tuple[str, bool, Tensor]]]] = []
    reads: list[Tensor] = []
    outputs: list[tuple[str, bool, Tensor]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reads[:] = [split_call(args, kwargs)[0].clone()]
        outputs.clear()

    def within(name: str) -> Any:
        def after(module: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor) and value.numel() == reads[0].numel():
                outputs.append(
                    (name, isinstance(module, MATRICES), value.clone())
                )  # Falcon adds one output to the other in place

        return after

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        seen.append((reads[0], unwrap(output), list(outputs)))

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles += [module.register_forward_hook(within(name)) for name, module in layer.named_modules() if name]
        handles.append(layer.register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _decompose(
    read: Tensor, written: Tensor, outputs: Sequence[tuple[str, bool, Tensor]], known: Sequence[float]
) -> tuple[tuple[str, str] | None, float]:
    """Names of the two modules whose outputs are added, and what their sum is multiplied by; None: there are none."""
    added = (written.double() - read.to(written.device).double()).flatten(0, -2)
    tolerance = TOLERANCE.get(written.dtype, HALF_TOLERANCE)
    distinct: list[tuple[str, bool, Tensor]] = []
    for name, is_matrix, output in outputs:
        rows = output.to(added.device).double().reshape(added.shape)
        same = next((i for i, (*_, other) in enumerate(distinct) if torch.equal(rows, other)), None)
        if same is None:
            distinct.append((name, is_matrix, rows))
        elif not distinct[same][1]:  # the matrix itself, without the dropout after it; else the outermost module
            distinct[same] = (name, is_matrix, rows)
    best, best_terms, multiplier = tolerance, None, 1.0
    for (first, _, one), (second, _, other) in combinations(distinct, 2):
        total = one + other
        factor = _ratio(added, total, known)
        # Of the tokens, the median: where one is massive, rounding is larger than what the layer adds to it.
        error = ((added - factor * total).norm(dim=-1) / added.norm(dim=-1)).median().item()
        if error < best:
            best, best_terms, multiplier = error, (first, second), factor
    return best_terms, multiplier


def _ratio(added: Tensor, total: Tensor, known: Sequence[float]) -> float:
    """The median over tokens of what one is of the other; exactly one of those known where it is nearly that."""
    ratio = ((added * total).sum(dim=-1) / total.square().sum(dim=-1)).median().item()
    return next((value for value in known if abs(ratio - value) < 1e-2 * value), ratio)
