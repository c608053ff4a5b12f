"""SLEB: greedily remove the layer whose absence hurts the loss least."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores, SearchStep


@component("pruner", "sleb", title="SLEB")
@dataclass(frozen=True)
class Sleb(RankingPruner):
    """Greedy search: each step removes the layer without which the current model's loss is lowest.

    SLEB, section 3.3 (metric 3), algorithm 1; of equal losses the earlier layer goes. Each step is cached,
    so that one search serves every smaller number of layers and a longer one resumes where it ended.

    Attributes:
        stop_early: Give up on a candidate once it can't win. The same layers are removed either way; the
            recorded loss of such a candidate is a lower bound.
    """

    protect_first: int = 1
    protect_last: int = 1
    stop_early: bool = True

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Remove one layer after the other."""
        removed: list[int] = []
        steps: list[SearchStep] = []
        for _ in range(n):
            candidates = [layer for layer in self.candidates(workspace.num_layers) if layer not in removed]
            losses = workspace.removal_losses(removed, candidates, stop_early=self.stop_early)
            best = min(
                (layer for layer in losses if not losses[layer].is_bound),
                key=lambda layer: (losses[layer].loss, layer),
            )
            measured = {str(layer): losses[layer].loss for layer in sorted(losses)}
            steps.append(SearchStep(best, measured, sorted(layer for layer in losses if losses[layer].is_bound)))
            removed.append(best)
        return Edit.of_layers(removed, scores=LayerScores("mean NLL without the layer", steps=steps))
