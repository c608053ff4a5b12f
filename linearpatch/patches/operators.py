"""The modules that patches become: maps from stream to stream with one product at inference."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelScale(nn.Module):
    """Multiplies each channel, or all channels alike: x ↦ x ⊙ d.

    Args:
        scale: `[hidden_size]`, or `[1]`.
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale `[…, hidden_size]`."""
        return hidden * self.scale


class LinearMap(nn.Module):
    """Multiplies by a matrix and adds a bias: x ↦ x W + b, one matrix product.

    Args:
        matrix: W for row vectors, `[hidden_size, hidden_size]`.
        bias: b, `[hidden_size]`.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # Stored as torch.nn.Linear does, so that the product needs no transposed copy.
        self.weight = nn.Parameter(matrix.T.float().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`."""
        return functional.linear(hidden, self.weight, self.bias)


def parameter_hash(modules: list[nn.Module]) -> str:
    """Identity of fitted patches: a hash of their parameters, in order."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().to(torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
