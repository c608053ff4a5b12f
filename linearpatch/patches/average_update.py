"""What was removed added something to the stream; its mean is added in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.stream_means import StreamMean
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.modeling_linearpatch import ChannelShift
from linearpatch.patches.patch import StreamPatch, at_streams
from linearpatch.registry import component


@component("patch", "average_update", title="average update")
@dataclass(frozen=True)
class AverageUpdate(StreamPatch):
    """x ↦ x + b with b the mean over calibration tokens of what the removed layers or sublayers added.

    Siddiqui et al. 2024 ("A deeper look at depth pruning of LLMs"), section 4.3: it leaves the mean of the stream past
    the interface as it was, and does as well there as trained low-rank adapters.
    """

    version: ClassVar[int] = 1

    @property
    def is_matrix(self) -> bool:
        """It has none, so that distillation trains the operator as a whole."""
        return False

    @property
    def adds_layers(self) -> bool:
        """Always: layers that add their bias alone."""
        return True

    def statistics(self) -> Sequence[Statistic]:
        """Means of all streams."""
        return (StreamMean(),)

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """The mean past each interface less that before it."""
        mean = at_streams(workspace, StreamMean(), "mean", [site.interface for site in sites])
        fitted = []
        for site in sites:
            shift = mean[site.interface.end] - mean[site.interface.start]
            size = shift.norm() / mean[site.interface.end].norm()
            fitted.append(PlacedOperator(site, ChannelShift(shift), {"share_of_mean": size.item()}))
        return fitted
