"""Shortened LLaMA's Taylor+ criterion: first-order importance, with the ends protected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.weight_scores import importance
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "taylor", title="Taylor")
@dataclass(frozen=True)
class Taylor(RankingPruner):
    """Layers with the least Σ|W ⊙ ∂L/∂W| over their matrices and norm gains.

    Shortened LLaMA, section 2.2. The '+' protects the first four and last two layers; without it the
    first layer looks least important for most models and its removal destroys them.
    """

    units: ClassVar[Sequence[str]] = UNITS

    protect_first: int = 4
    protect_last: int = 2

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank the layers by their importance."""
        by_layer = self.unit == LAYER
        values = importance(workspace, sublayers=not by_layer)
        return self.lowest("sum |W * dL/dW|", values.tolist() if by_layer else self.of_unit(values), n)
