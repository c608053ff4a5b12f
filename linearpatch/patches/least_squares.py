"""What the least-squares patches share: the settings, the closed-form solution, its diagnostics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.errors import NumericsError, require_choice, require_range
from linearpatch.models.views import Site
from linearpatch.patches.patch import Patch
from linearpatch.registry import name_of

log = logging.getLogger(__name__)

WEIGHTINGS = ("none", "relative")


@dataclass(frozen=True)
class LeastSquaresPatch(Patch):
    """Base of the patches that minimise Σ w ‖x W − y‖² + λ ‖W − I‖², solved from Gram matrices in fp64.

    Attributes:
        ridge: λ as a fraction of the mean of the diagonal of Σ w xᵀx; pulls toward the identity. At 0 the
            map is free.
        weighting: `none`, or `relative`: w is 1 over the squared norm of the stream past the gap. Whatever
            reads the stream normalises it first, so that an error matters by its share of the token's norm.
    """

    ridge: float = 1e-6
    weighting: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("patch.ridge", self.ridge, low=0)
        require_choice("patch.weighting", self.weighting, WEIGHTINGS)

    @property
    def relative(self) -> bool:
        """Whether tokens are weighted by their norm."""
        return self.weighting == "relative"

    def solve(self, site: Site, gram: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The minimiser W, `[D(+1), D]` in fp64, and how far the stream is from its target before and after.

        Args:
            site: For messages.
            gram: Results of `Gram` or `MlpGram`; a row past D belongs to a bias, which the ridge leaves alone.

        Raises:
            NumericsError: there is no unique solution.
        """
        xx, xy = gram["xx"], gram["xy"]
        size = xy.shape[1]
        identity = torch.zeros_like(xy)
        identity[:size] = torch.eye(size, dtype=xy.dtype)
        penalty = torch.zeros(len(xx), dtype=xx.dtype)
        penalty[:size] = self.ridge * xx.diagonal()[:size].mean()
        if gram["count"] < len(xx):
            log.warning(
                "patch=%s at [%d, %d): %d tokens for %d unknowns per channel; the fit follows its own tokens and "
                "may do harm elsewhere. Give it more calibration tokens.",
                *(name_of(self), site.start, site.end, int(gram["count"]), len(xx)),
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
        return matrix, diagnostics


def _relative_error(matrix: Tensor, gram: Mapping[str, Tensor]) -> float:
    """Σ w ‖x W − y‖² from the Gram matrices, over the weighted energy of the stream past the gap."""
    error = gram["yy"] - 2 * (matrix * gram["xy"]).sum() + (matrix * (gram["xx"] @ matrix)).sum()
    return float(error / gram.get("energy", gram["yy"]))
