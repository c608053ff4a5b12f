"""Shortened LLaMA's Taylor+ criterion: first-order importance, with the ends protected."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "taylor", title="Taylor")
@dataclass(frozen=True)
class Taylor(RankingPruner):
    """Layers with the least Σ|W ⊙ ∂L/∂W| over their matrices and norm gains.

    Shortened LLaMA, section 2.2. The '+' protects the first four and last two layers; without it the
    first layer looks least important for most models and its removal destroys them.
    """

    protect_first: int = 4
    protect_last: int = 2

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank the layers by their importance."""
        return self.lowest("sum |W * dL/dW|", workspace.importance().tolist(), n)
