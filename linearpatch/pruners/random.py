"""The baseline that every criterion must beat: random layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_seed
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "random", title="Random")
@dataclass(frozen=True)
class Random(RankingPruner):
    """Layers in a random order.

    Attributes:
        seed: Of the order; the YAML takes the run's.
    """

    units: ClassVar[Sequence[str]] = UNITS

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed("pruner.seed", self.seed)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Draw the layers."""
        number = len(self.all_units(workspace.num_layers))
        draws = torch.rand(number, generator=torch.Generator().manual_seed(self.seed))
        return self.lowest("random draw", draws.tolist(), n)
