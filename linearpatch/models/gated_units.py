"""Hidden units of gated MLPs, as functions of the normalised stream that stand on their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import rms_normalised
from linearpatch.models.offload import read_parameter
from linearpatch.models.quantised import check_unquantised

PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class GatedUnits:
    """n ↦ silu(n g) · n u for each unit, n the stream over its root mean square.

    Attributes:
        name: What identifies them among those of a model.
        gate: Columns g, `[hidden_size, units]` in fp32.
        up: Columns u, of the same shape.
    """

    name: str
    gate: Tensor
    up: Tensor

    def __len__(self) -> int:
        return self.gate.shape[1]

    def of(self, normed: Tensor) -> Tensor:
        """Their values, `[tokens, units]`, of `[tokens, hidden_size]`, in its precision."""
        gate, up = self.gate.to(normed), self.up.to(normed)
        values: Tensor = functional.silu(normed @ gate) * (normed @ up)
        return values

    def take(self, indices: Tensor) -> GatedUnits:
        """Some of them."""
        name = hashlib.sha256(f"{self.name} {indices.tolist()}".encode()).hexdigest()
        return GatedUnits(name, self.gate[:, indices], self.up[:, indices])


def units_of(decoder: Decoder, layers: range) -> GatedUnits:
    """The hidden units of the MLPs of some layers; the weights of the norms before them are in theirs.

    Raises:
        ModelError: a layer has no such MLP.
    """
    gates, ups = [], []
    for index in layers:
        check_gated(decoder, index)
        layer: Any = decoder.layers[index]
        norm = read_parameter(layer.post_attention_layernorm, "weight").detach().float().cpu()
        gate, up = (read_parameter(getattr(layer.mlp, name), "weight").detach().float().cpu() for name in PARTS[:2])
        gates.append((gate * norm).T)
        ups.append((up * norm).T)
    return GatedUnits(f"layers {[*layers]}", torch.cat(gates, dim=1).contiguous(), torch.cat(ups, dim=1).contiguous())


@torch.no_grad()
def check_gated(decoder: Decoder, index: int) -> None:
    """Reject layers whose MLP isn't silu(n G) ⊙ n U after an RMSNorm.

    Raises:
        ModelError: names the class.
    """
    layer = decoder.layers[index]
    check_unquantised([layer], "patch=mlp", "Use patch=lstsq.")
    mlp, norm = getattr(layer, "mlp", None), getattr(layer, "post_attention_layernorm", None)
    matrices = [getattr(mlp, name, None) for name in PARTS]
    if (
        norm is None
        or not all(isinstance(matrix, nn.Linear) and matrix.bias is None for matrix in matrices)
        or getattr(decoder.config, "hidden_act", None) != "silu"
        or not _is_rms_norm(norm, float(getattr(decoder.config, "rms_norm_eps", None) or 0))
    ):
        raise ModelError(
            f"The MLP of {type(layer).__name__} isn't a gated one of three matrices with SiLU after an RMSNorm, whose "
            "hidden units could be taken over. Use patch=lstsq or patch=refit."
        )


def _is_rms_norm(norm: nn.Module, epsilon: float) -> bool:
    """Whether a module divides by the root mean square and multiplies by its weight, and that is all."""
    weight = read_parameter(norm, "weight")
    if weight.is_meta:
        return True  # of a model on disk; its family is the same
    stream = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
    expected = rms_normalised(stream, epsilon) * weight
    return torch.allclose(norm(stream).float(), expected.float(), rtol=1e-2, atol=1e-2)
