"""Which experts of a layer the calibration tokens reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.calibration.statistics import Accumulator, LayerInput, Statistic

MOST_NAMED = 20


@dataclass(frozen=True)
class ExpertUse(Statistic):
    """How many tokens each expert of a layer gets.

    Result `tokens`: `[experts]`; empty where the layer has none. `count`: of all tokens.

    Attributes:
        layer: Dense index.
    """

    layer: int

    def start(self, num_layers: int) -> Accumulator:
        """Keep counts."""
        return _Counts(self.layer)

    def deepest(self, num_layers: int) -> float:
        """The layer must have run."""
        return self.layer + 1

    def expert_layers(self) -> tuple[int, ...]:
        """That layer."""
        return (self.layer,)


class _Counts:
    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.tokens = torch.zeros(0, dtype=torch.long)
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        if stream.index != self.layer + 1:
            return
        self.count += stream.hidden.shape[:-1].numel()
        if stream.routed is not None:
            self.tokens = stream.routed if not len(self.tokens) else self.tokens + stream.routed

    def result(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens.double(), "count": torch.tensor(self.count).double()}


def unused_experts(layer: int, use: dict[str, Tensor], patch: str) -> str:
    """A sentence that names the experts of a layer that no token reached; empty where all were.

    Args:
        layer: Dense index.
        use: The result of `ExpertUse`.
        patch: Name of the patch that changes their weights.
    """
    unused = (use["tokens"] == 0).nonzero().flatten().tolist()
    if not unused:
        return ""
    return (
        f"patch={patch} changes the weights of all {len(use['tokens'])} experts of layer {layer}, and no token of the "
        f"calibration text ({int(use['count']):,}) was routed to {_named(unused)}. Their new weights aren't fitted "
        "to any token. Use more or more varied text (calibration.num_blocks, corpus), or patch=lstsq, which keeps them."
    )


def _named(experts: Sequence[int]) -> str:
    named = ", ".join(map(str, experts[:MOST_NAMED]))
    more = len(experts) - MOST_NAMED
    return f"expert{'s' if len(experts) > 1 else ''} {named}{f' and {more} more' if more > 0 else ''}"
