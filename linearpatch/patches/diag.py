"""One number for each channel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from linearpatch.models.modeling_linearpatch import ChannelScale
from linearpatch.patches.patch import ScalePatch
from linearpatch.registry import component


@component("patch", "diag", title="diagonal")
@dataclass(frozen=True)
class Diag(ScalePatch):
    """x ↦ x ⊙ d with d the ratio of mean magnitudes of each channel.

    LinearPatch, section 3.2, eq. 4.
    """

    def operator(self, scale: Tensor) -> nn.Module:
        """Scale each channel."""
        return ChannelScale(scale)
