"""Shortened LLaMA's perplexity criterion: each layer removed alone, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores


@component("pruner", "perplexity", title="PPL")
@dataclass(frozen=True)
class Perplexity(RankingPruner):
    """Layers whose removal, each alone, raises the calibration loss least.

    Shortened LLaMA, section 2.2 ("PPL"). Perplexity is the exponential of the loss, so both rank alike.
    Only candidates are measured; the protected layers have no score.
    """

    units: ClassVar[Sequence[str]] = UNITS

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank the layers by the loss without them."""
        losses = workspace.removal_losses([], self.left(workspace.num_layers))
        values = [losses[unit].loss if unit in losses else None for unit in self.all_units(workspace.num_layers)]
        criterion = f"mean NLL without the {self.unit}"
        edit = self.lowest(criterion, [inf if value is None else value for value in values], n)
        return Edit.without(edit.removed, scores=LayerScores(criterion, self.unit, values=values))
