"""Gromov et al. and PruneMe: the window with the smallest angle at the last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.statistics import LastTokenAngle, Statistic
from linearpatch.calibration.sublayer_statistics import SublayerAngle
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "angular", title="Angular")
@dataclass(frozen=True)
class Angular(RankingPruner):
    """Contiguous window with the smallest mean angle between its input and output at each block's last token.

    "The unreasonable ineffectiveness of the deeper layers", section 3, eq. 6. The first layer stays by
    default: the public implementation compares layer outputs, so no window starts at the embeddings. Sublayers are
    ranked by the angle across each.
    """

    units: ClassVar[Sequence[str]] = UNITS

    protect_first: int = 1

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Angles across windows of `n` layers, or across single sublayers."""
        return (LastTokenAngle(n),) if self.unit == LAYER else (SublayerAngle(),)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose the window with the smallest angle."""
        if self.unit != LAYER:
            return self.lowest("angle / π", self.of_unit(workspace.statistic(SublayerAngle())["angle"]), n)
        angle = workspace.statistic(LastTokenAngle(n))["angle"]
        return self.lowest_window("angle / π", angle.tolist(), n)
