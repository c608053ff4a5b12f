"""The paper's patch: rotate, scale each channel, rotate back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from linearpatch.linalg.hadamard import hadamard_matrix
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.patches.patch import ScalePatch
from linearpatch.registry import component


@component("patch", "rotate")
@dataclass(frozen=True)
class Rotate(ScalePatch):
    """x ↦ x P with P = H diag(d) Hᵀ, H the normalised Hadamard matrix and d measured on x H.

    LinearPatch, section 3.3, eq. 9. The rotation spreads the few massive tokens and channels over all, so
    that one d fits every token. P is one symmetric matrix: one product at inference.
    """

    basis: ClassVar[str] = "hadamard"

    def operator(self, scale: Tensor) -> nn.Module:
        """Fold rotation and scale into one matrix, in fp64."""
        rotation = hadamard_matrix(len(scale))
        return LinearMap((rotation * scale.to(torch.float64)) @ rotation.T)
