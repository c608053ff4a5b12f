"""The unconstrained map with the least squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearpatch.calibration.gram import Gram
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.views import Site
from linearpatch.patches.least_squares import LeastSquaresPatch
from linearpatch.patches.patch import FittedPatch
from linearpatch.registry import component


@component("patch", "lstsq")
@dataclass(frozen=True)
class LeastSquares(LeastSquaresPatch):
    """x ↦ x W + b minimising Σ w ‖x W + b − y‖² + λ ‖W − I‖² over calibration tokens, y past the gap.

    The map of Ghosted Layers (closed form) with choices of its own.

    Attributes:
        bias: Whether there is a b; it isn't held back by the ridge.
    """

    bias: bool = False

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[FittedPatch]:
        """Gather Gram matrices at the sites in one pass up to the deepest, and solve."""
        wanted = [Gram(site.start, site.end, self.bias, self.relative) for site in sites]
        fitted = []
        for site, gram in zip(sites, workspace.collect(*wanted, description="fit"), strict=True):
            matrix, diagnostics = self.solve(site, gram)
            size = workspace.hidden_size
            operator = LinearMap(matrix[:size], matrix[size] if self.bias else None)
            fitted.append(FittedPatch(site, operator, diagnostics))
        return fitted
