"""At most so many parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linearpatch.budgets.amounts import COUNTS, amount
from linearpatch.budgets.budget import Limit, Limits, num_parameters
from linearpatch.calibration.workspace import Workspace
from linearpatch.registry import component


@component("budget", "parameters")
@dataclass(frozen=True)
class Parameters(Limit):
    """The fewest layers without which the patched model has at most so many parameters, embeddings included.

    Attributes:
        at_most: A share of the dense model's up to 1, or a number of parameters: `0.8`, `6.5e9`, `6.5B`.
    """

    at_most: Any = 0.8

    def __post_init__(self) -> None:
        amount("budget.at_most", self.at_most, COUNTS)

    @property
    def label(self) -> str:
        """Such as `parameters0.8`."""
        return f"parameters{self.at_most}"

    def limits(self, workspace: Workspace, sizes: Sequence[int]) -> Limits:
        """Counted, from a mean layer on."""
        dense = workspace.decoder
        number, is_share = amount("budget.at_most", self.at_most, COUNTS)
        limit = number * dense.num_parameters if is_share else number
        return Limits(
            limit=limit,
            dense=dense.num_parameters,
            unit="parameters",
            measure=lambda edit: (num_parameters(dense, edit), None),
            estimate=layers_worth(dense.num_parameters - limit, [_size(layer) for layer in dense.layers]),
        )


def layers_worth(amount: float, layers: Sequence[float]) -> int:
    """How many mean layers make up an amount, at least 1."""
    mean = sum(layers) / len(layers)
    return max(1, -int(-amount // mean))


def _size(layer: Any) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
