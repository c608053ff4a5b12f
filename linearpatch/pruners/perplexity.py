"""Shortened LLaMA's perplexity criterion: each layer removed alone, once."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.pruners.pruner import Pruner, Selection
from linearpatch.registry import component


@component("pruner", "perplexity")
@dataclass(frozen=True)
class Perplexity(Pruner):
    """Layers whose removal, each alone, raises the calibration loss least.

    Shortened LLaMA, section 2.2 ("PPL"). Perplexity is the exponential of the loss, so both rank alike.
    Only candidates are measured; the protected layers have no score.
    """

    def rough_passes(self, num_layers: int, n: int) -> float:
        """Every layer is tried, with half of the layers run for it."""
        return 0.5 * num_layers

    def select(self, workspace: Workspace, n: int) -> Selection:
        """Rank the layers by the loss without them."""
        candidates = self.candidates(workspace.num_layers)
        losses = workspace.removal_losses([], candidates)
        scores = [losses[layer].loss if layer in losses else float("inf") for layer in range(workspace.num_layers)]
        selection = self.lowest("mean NLL without the layer", scores, n)
        values = [losses[layer].loss if layer in losses else None for layer in range(workspace.num_layers)]
        return Selection(selection.removed, {**selection.scores, "values": values})
