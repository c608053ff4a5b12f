"""Shortened LLaMA's Magnitude+ criterion: the layers with the smallest weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.weight_scores import weight_norms
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_range
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "magnitude", title="Magnitude")
@dataclass(frozen=True)
class Magnitude(RankingPruner):
    """Layers with the least Σ|W|^p over their matrices and norm gains, the ends protected ('+').

    Shortened LLaMA, section 2.2. Needs no text.

    Attributes:
        power: The p; 1 as published.
    """

    units: ClassVar[Sequence[str]] = UNITS

    protect_first: int = 4
    protect_last: int = 2
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("pruner.power", self.power, low=0.1, high=4)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank the layers by the size of their weights."""
        by_layer = self.unit == LAYER
        norms = weight_norms(workspace, self.power, sublayers=not by_layer)
        return self.lowest(f"sum |W|^{self.power:g}", norms.tolist() if by_layer else self.of_unit(norms), n)
