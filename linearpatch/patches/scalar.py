"""One number for the whole stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from linearpatch.models.modeling_linearpatch import ChannelScale
from linearpatch.patches.patch import ScalePatch
from linearpatch.registry import component


@component("patch", "scalar")
@dataclass(frozen=True)
class Scalar(ScalePatch):
    """x ↦ α x with α the ratio of mean magnitudes over all channels and tokens.

    Prune&Comp, section 3.2.
    """

    pooled: ClassVar[bool] = True
    foldable: ClassVar[bool] = True

    def operator(self, scale: Tensor) -> nn.Module:
        """Scale every channel alike."""
        return ChannelScale(scale)
