"""Gromov et al. and PruneMe: the window with the smallest angle at the last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearpatch.calibration.statistics import LastTokenAngle, Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "angular", title="Angular")
@dataclass(frozen=True)
class Angular(RankingPruner):
    """Contiguous window with the smallest mean angle between its input and output at each block's last token.

    "The unreasonable ineffectiveness of the deeper layers", section 3, eq. 6. The first layer stays by
    default: the public implementation compares layer outputs, so no window starts at the embeddings.
    """

    protect_first: int = 1

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Angles across windows of `n` layers."""
        return (LastTokenAngle(n),)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose the window with the smallest angle."""
        angle = workspace.statistic(LastTokenAngle(n))["angle"]
        return self.lowest_window("angle / π", angle.tolist(), n)
