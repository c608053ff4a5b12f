"""First-order importance of each layer, without a gradient for the whole model at any time.

Taylor+ scores a layer by Σ|W ⊙ ∂L/∂W| over its weights (Shortened LLaMA, section 2.2). A usual backward
pass holds the activations of every layer and as many gradients as there are weights. Here a forward pass
keeps only the stream each layer reads; going back, a layer runs again with gradients, its weights'
gradients become one number and are dropped. Peak memory: weights, streams, one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.models.decoder import Decoder, unwrap
from linearpatch.models.gradients import gradients_for
from linearpatch.models.loss import stream_gradient
from linearpatch.models.modeling_linearpatch import PATCH_PREFIX
from linearpatch.models.passes import record
from linearpatch.models.quantised import check_unquantised
from linearpatch.models.removal import own_names
from linearpatch.models.sublayers import ATTENTION, MLP


def layer_weights(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters by which a layer is scored: all its matrices and norm gains, no biases and no patches."""
    named = layer.named_parameters()
    return [weight for name, weight in named if not name.endswith("bias") and not name.startswith(PATCH_PREFIX)]


def weight_rows(decoder: Decoder, index: int, *, sublayers: bool) -> list[int]:
    """Which entry of a list of scores each of a layer's weights counts for.

    Args:
        decoder: The model.
        index: Of the layer.
        sublayers: Whether there are two for each layer, attention and MLP in turn, or one.

    Raises:
        ModelError: the family's sublayers can't be separated.
    """
    layer = decoder.layers[index]
    if not sublayers:
        return [index] * len(layer_weights(layer))
    rows = {id(p): 2 * index for name in own_names(decoder, index, ATTENTION) for p in _of_child(layer, name)}
    rows |= {id(p): 2 * index + 1 for name in own_names(decoder, index, MLP) for p in _of_child(layer, name)}
    return [rows[id(weight)] for weight in layer_weights(layer)]


def _of_child(layer: nn.Module, name: str) -> list[nn.Parameter]:
    return list(layer.get_submodule(name).parameters())


def _check_weights(decoder: Decoder) -> None:
    instead = "Use a pruner that looks at the stream or at losses, such as streamline, shortgpt, sleb or patch_aware."
    check_unquantised(decoder.layers, "This pruner", instead)


def weight_norms(decoder: Decoder, power: float, *, sublayers: bool) -> Tensor:
    """Σ|W|^power over the weights of each layer, `[L]`, or of each sublayer, `[2 L]`, in fp64."""
    _check_weights(decoder)
    norms = torch.zeros((2 if sublayers else 1) * decoder.num_layers, dtype=torch.float64)
    for index, layer in enumerate(decoder.layers):
        owners = weight_rows(decoder, index, sublayers=sublayers)
        for weight, owner in zip(layer_weights(layer), owners, strict=True):
            norms[owner] += weight.detach().float().abs().pow(power).sum(dtype=torch.float64).cpu()
    return norms


def first_order_importance(
    decoder: Decoder,
    batches: Sequence[Tensor],
    *,
    sublayers: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Σ over batches and weights of |W ⊙ ∂L/∂W| for each layer, `[L]` in fp64.

    L is the mean next-token loss of a batch. The absolute value is taken batch by batch: a sum over
    batches before it would let their signs cancel. With one batch, as published, both agree.

    Args:
        decoder: The model.
        batches: Token ids, `[blocks, tokens]` each.
        sublayers: For each sublayer, `[2 L]`: attention and MLP in turn.
        on_step: Called after each layer of each batch.
    """
    _check_weights(decoder)
    owners = [weight_rows(decoder, index, sublayers=sublayers) for index in range(decoder.num_layers)]
    importance = torch.zeros((2 if sublayers else 1) * decoder.num_layers, dtype=torch.float64)
    for batch in batches:
        for index, weights, gradients in layer_gradients(decoder, batch, layer_weights, on_step=on_step):
            for owner, weight, gradient in zip(owners[index], weights, gradients, strict=True):
                if gradient is not None:  # experts that no token reached have none
                    product = gradient.mul_(weight.detach()).abs_()
                    importance[owner] += product.sum(dtype=torch.float64).cpu()
    return importance


def layer_gradients(
    decoder: Decoder,
    batch: Tensor,
    weights_of: Callable[[nn.Module], list[nn.Parameter]],
    *,
    first: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[nn.Parameter], list[Tensor | None]]]:
    """Gradients of the mean next-token loss for some weights of each layer, from the last layer to the first.

    Args:
        decoder: The model.
        batch: Token ids, `[blocks, tokens]`.
        weights_of: Which weights of a layer.
        first: The first layer whose gradients are wanted.
        on_step: Called after each layer.

    Yields:
        A layer's index, its weights and their gradients, which are dropped before the next layer runs.
    """
    recording = record(decoder, batch, before_patches=True)
    gradient = stream_gradient(decoder, recording.streams.pop(decoder.num_layers), batch)
    for index in reversed(range(first, decoder.num_layers)):
        stream = recording.streams.pop(index).detach().requires_grad_()
        layer, call = decoder.layers[index], recording.calls[index]
        weights = weights_of(layer)
        with gradients_for(weights, True):
            with torch.enable_grad():
                output = unwrap(layer(stream, *call.args, **call.kwargs))
            gradients: list[Any] = list(
                torch.autograd.grad(output, [stream, *weights], gradient.to(output.device), allow_unused=True)
            )
        gradient = gradients.pop(0)
        del output
        yield index, weights, gradients
        gradients.clear()
        on_step()
