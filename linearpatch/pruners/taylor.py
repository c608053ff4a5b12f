"""Shortened LLaMA's Taylor+ criterion: first-order importance, with the ends protected."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.pruners.pruner import Pruner, Selection
from linearpatch.registry import component


@component("pruner", "taylor")
@dataclass(frozen=True)
class Taylor(Pruner):
    """Layers with the least Σ|W ⊙ ∂L/∂W| over their matrices and norm gains.

    Shortened LLaMA, section 2.2. The '+' protects the first four and last two layers; without it the
    first layer looks least important for most models and its removal destroys them.
    """

    protect_first: int = 4
    protect_last: int = 2

    def rough_passes(self, num_layers: int, n: int) -> float:
        """One pass forward and backward."""
        return 3

    def select(self, workspace: Workspace, n: int) -> Selection:
        """Rank the layers by their importance."""
        return self.lowest("sum |W * dL/dW|", workspace.importance().tolist(), n)
