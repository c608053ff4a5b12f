"""ShortGPT: the layers with the least block influence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearpatch.calibration.statistics import Statistic, WindowCosine
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "shortgpt", title="ShortGPT")
@dataclass(frozen=True)
class ShortGPT(RankingPruner):
    """Layers with the lowest block influence, 1 − E cos(X_i, X_{i+1}), anywhere in the model.

    ShortGPT, section 3.1, eq. 1. Scored once, on the dense model; the last layer's output is taken before
    the final norm.
    """

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Cosines across single layers."""
        return (WindowCosine(1),)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose the layers that turn the stream least."""
        cosine = workspace.statistic(WindowCosine(1))["cosine"]
        return self.lowest("block influence", (1 - cosine).tolist(), n)
