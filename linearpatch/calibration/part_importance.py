"""First-order importance of attention heads and MLP channels, from the gradients of one layer at a time.

LLM-Pruner (Ma et al. 2023), section 3.2: the importance of a group of coupled weights is how much the loss changes
without them, to first order. Element-wise it is Σ|w ∂L/∂w| (eq. 5, first term; what the released code does by default),
vector-wise |Σ w ∂L/∂w| of each row or column (eq. 3), both summed over the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linearpatch.calibration.gradients import layer_gradients
from linearpatch.models.decoder import Decoder
from linearpatch.models.narrowing import ATTENTION, DOWN, OUTPUT, projections_of, widths_of
from linearpatch.models.quantised import check_unquantised

KINDS = ("element", "vector")


def part_importance(
    decoder: Decoder,
    batches: Sequence[Tensor],
    layers: range,
    kind: str,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Importance of each head and channel of some layers, in fp64 and summed over batches.

    L is the mean next-token loss of a batch; absolute values are taken batch by batch, as for layers
    (`calibration.gradients`). Biases don't count.

    Args:
        decoder: The model.
        batches: Token ids, `[blocks, tokens]` each.
        layers: Of equal widths.
        kind: `element` or `vector`.
        on_step: Called after each layer of each batch.

    Returns:
        Of the key-value heads with their query heads, `[layers, heads]`, and of the MLP channels,
        `[layers, channels]`.
    """
    widths = widths_of(decoder, layers[0])
    heads = torch.zeros(len(layers), widths.num_heads, dtype=torch.float64)
    channels = torch.zeros(len(layers), widths.num_channels, dtype=torch.float64)
    check_unquantised(decoder.layers, "This pruner", "Use one that removes layers, such as streamline or patch_aware.")
    names = list(projections_of(decoder.layers[layers[0]]))

    def weights_of(layer: torch.nn.Module) -> list[torch.nn.Parameter]:
        return [matrix.get_parameter("weight") for matrix in projections_of(layer).values()]

    for batch in batches:
        for index, weights, gradients in layer_gradients(decoder, batch, weights_of, first=layers[0], on_step=on_step):
            if index not in layers:
                continue
            row = index - layers[0]
            for name, weight, gradient in zip(names, weights, gradients, strict=True):
                if gradient is None:
                    continue
                products = gradient.float() * weight.detach().float()
                units = products.T if name.endswith((OUTPUT, DOWN)) else products  # a row for each that may go
                size = units.abs().sum(1, dtype=torch.float64) if kind == "element" else units.double().sum(1).abs()
                if name.startswith(ATTENTION):
                    heads[row] += size.cpu().view(widths.num_heads, -1).sum(1)
                else:
                    channels[row] += size.cpu()
    return heads, channels
