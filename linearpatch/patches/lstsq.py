"""The unconstrained map with the least squared error."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.calibration.statistics import Gram
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import NumericsError, require_choice, require_range
from linearpatch.models.views import Site
from linearpatch.patches.operators import LinearMap
from linearpatch.patches.patch import FittedPatch, Patch
from linearpatch.registry import component

log = logging.getLogger(__name__)

WEIGHTINGS = ("none", "relative")


@component("patch", "lstsq")
@dataclass(frozen=True)
class LeastSquares(Patch):
    """x ↦ x W + b minimising Σ w ‖x W + b − y‖² + λ ‖W − I‖² over calibration tokens, y past the gap.

    The map of Ghosted Layers (closed form) with choices of its own. Solved from Gram matrices in fp64.

    Attributes:
        ridge: λ as a fraction of the mean of the diagonal of Σ w xᵀx; pulls toward the identity. At 0 the
            map is free.
        bias: Whether there is a b; it isn't held back by the ridge.
        weighting: `none`, or `relative`: w = 1/‖y‖². Whatever reads the stream normalises it first, so
            that an error matters by its share of the token's norm.
    """

    ridge: float = 1e-6
    bias: bool = False
    weighting: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("patch.ridge", self.ridge, low=0)
        require_choice("patch.weighting", self.weighting, WEIGHTINGS)

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[FittedPatch]:
        """Gather Gram matrices at the sites in one pass up to the deepest, and solve."""
        wanted = [Gram(s.start, s.end, bias=self.bias, relative=self.weighting == "relative") for s in sites]
        grams = workspace.collect(*wanted, description="fit")
        return [self._solve(site, gram) for site, gram in zip(sites, grams, strict=True)]

    def _solve(self, site: Site, gram: Mapping[str, Tensor]) -> FittedPatch:
        xx, xy = gram["xx"], gram["xy"]
        size = xy.shape[1]
        identity = torch.zeros_like(xy)
        identity[:size] = torch.eye(size, dtype=xy.dtype)
        penalty = torch.zeros(len(xx), dtype=xx.dtype)
        penalty[:size] = self.ridge * xx.diagonal()[:size].mean()
        if gram["count"] < len(xx):
            log.warning(
                "patch=lstsq at [%d, %d): %d tokens for %d unknowns per channel; the fit follows its own tokens and "
                "may do harm elsewhere. Give it more calibration tokens.",
                *(site.start, site.end, int(gram["count"]), len(xx)),
            )
        factor, failed = torch.linalg.cholesky_ex(xx + penalty.diag())
        if failed:
            raise NumericsError(
                f"The least-squares fit at [{site.start}, {site.end}) has no unique solution: "
                f"{int(gram['count'])} tokens for {len(xx)} unknowns per channel, patch.ridge={self.ridge}. "
                "Give it more calibration tokens or a larger ridge."
            )
        matrix = torch.cholesky_solve(xy + penalty[:, None] * identity, factor)
        diagnostics = {
            "error_before": _relative_error(identity, gram),
            "error_after": _relative_error(matrix, gram),
            "tokens": gram["count"].item(),
        }
        operator = LinearMap(matrix[:size], matrix[size] if self.bias else None)
        return FittedPatch(site, operator, diagnostics)


def _relative_error(matrix: Tensor, gram: Mapping[str, Tensor]) -> float:
    """Σ w ‖x W − y‖² / Σ w ‖y‖² from the Gram matrices."""
    error = gram["yy"] - 2 * (matrix * gram["xy"]).sum() + (matrix * (gram["xx"] @ matrix)).sum()
    return float(error / gram["yy"])
