"""The baseline that every criterion must beat: random layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_seed
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "random", title="Random")
@dataclass(frozen=True)
class Random(RankingPruner):
    """Layers in a random order.

    Attributes:
        seed: Of the order; the YAML takes the run's.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed("pruner.seed", self.seed)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Draw the layers."""
        draws = torch.rand(workspace.num_layers, generator=torch.Generator().manual_seed(self.seed))
        return self.lowest("random draw", draws.tolist(), n)
