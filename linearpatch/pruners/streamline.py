"""LLM-Streamline's selection, the one LinearPatch uses: the window that turns the stream least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearpatch.calibration.statistics import Statistic, WindowCosine
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "streamline", title="LLM-Streamline")
@dataclass(frozen=True)
class Streamline(RankingPruner):
    """Contiguous window with the highest mean cosine between its input and output.

    LLM-Streamline, section 3.1; LinearPatch, section 3.1, eq. 2. The cosine is taken per token over the
    hidden dimension and before the final norm, so that the last window is judged like the others.
    """

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Cosines across windows of `n` layers."""
        return (WindowCosine(n),)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose the window whose 1 − cosine is lowest."""
        cosine = workspace.statistic(WindowCosine(n))["cosine"]
        return self.lowest_window("1 - cosine", (1 - cosine).tolist(), n)
