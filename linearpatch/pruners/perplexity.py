"""Shortened LLaMA's perplexity criterion: each layer removed alone, once."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores


@component("pruner", "perplexity", title="PPL")
@dataclass(frozen=True)
class Perplexity(RankingPruner):
    """Layers whose removal, each alone, raises the calibration loss least.

    Shortened LLaMA, section 2.2 ("PPL"). Perplexity is the exponential of the loss, so both rank alike.
    Only candidates are measured; the protected layers have no score.
    """

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank the layers by the loss without them."""
        candidates = self.candidates(workspace.num_layers)
        losses = workspace.removal_losses([], candidates)
        scores = [losses[layer].loss if layer in losses else float("inf") for layer in range(workspace.num_layers)]
        edit = self.lowest("mean NLL without the layer", scores, n)
        values = [losses[layer].loss if layer in losses else None for layer in range(workspace.num_layers)]
        return Edit.of_layers(edit.removed_layers, scores=LayerScores("mean NLL without the layer", values=values))
