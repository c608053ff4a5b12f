"""SLEB: greedily remove the layer whose absence hurts the loss least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from linearpatch.calibration.candidate_losses import NLL, OBJECTIVES
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_choice
from linearpatch.models.edit import Edit
from linearpatch.models.units import Unit, as_units
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores, SearchStep


@component("pruner", "sleb", title="SLEB")
@dataclass(frozen=True)
class Sleb(RankingPruner):
    """Greedy search: each step removes the layer without which the current model's loss is lowest.

    SLEB, section 3.3 (metric 3), algorithm 1; of equal losses the earlier layer goes. Each step is cached,
    so that one search serves every smaller number of layers and a longer one resumes where it ended.

    Attributes:
        objective: What the loss is: `nll`, the mean next-token loss, or `divergence`, that of the predictions from the
            dense model's (FinerCut, Zhang et al. 2024, section 3.2, which removes sublayers so).
        stop_early: Give up on a candidate once it can't win. The same layers are removed either way; the
            recorded loss of such a candidate is a lower bound.
    """

    units: ClassVar[Sequence[str]] = UNITS

    protect_first: int = 1
    protect_last: int = 1
    stop_early: bool = True
    objective: str = field(default=NLL, metadata={"identity": "changed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pruner.objective", self.objective, OBJECTIVES)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Remove one layer after the other."""
        removed: list[Unit] = []
        steps: list[SearchStep] = []
        for _ in range(n):
            found = workspace.removal_losses(
                removed,
                self.left(workspace.num_layers, removed),
                stop_early=self.stop_early,
                objective=self.objective,
            )
            losses = {unit: found[unit] for unit in sorted(as_units(found))}
            exact = [unit for unit, loss in losses.items() if not loss.is_bound]
            best = min(exact, key=lambda unit: (losses[unit].loss, unit))
            measured = {str(unit): loss.loss for unit, loss in losses.items()}
            bounds = [unit.plain for unit, loss in losses.items() if loss.is_bound]
            steps.append(SearchStep(best.plain, measured, bounds))
            removed.append(best)
        what = "mean NLL" if self.objective == NLL else "divergence from dense"
        return Edit.without(removed, scores=LayerScores(f"{what} without the {self.unit}", self.unit, steps=steps))
