"""Layers at even distances."""

from __future__ import annotations

from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_range
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores


@component("pruner", "every_other")
@dataclass(frozen=True)
class EveryOther(Pruner):
    """Layers at even distances, from the front.

    Attributes:
        step: Distance between two removed layers.
    """

    step: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("pruner.step", self.step, low=1)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Take every `step`-th candidate, then those between them."""
        candidates = list(self.candidates(workspace.num_layers))
        ranked = [layer for offset in range(self.step) for layer in candidates[offset :: self.step]]
        positions = [float(layer) for layer in range(workspace.num_layers)]
        return Edit.of_layers(ranked[:n], scores=LayerScores("position", values=positions))
