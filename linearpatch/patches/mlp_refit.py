"""A new weight for the MLP before a gap, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from linearpatch.calibration.gram import RefitGram
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.views import Interface, Site
from linearpatch.models.writers import mlp_product
from linearpatch.patches.least_squares import LeastSquaresPatch, Solution, energies, solve
from linearpatch.registry import component


@component("patch", "mlp_refit")
@dataclass(frozen=True)
class MlpRefit(LeastSquaresPatch):
    """The last product of the MLP before a gap, fitted anew: x + h Δ ≈ y.

    h is what that product reads. `mlp_lstsq` can only turn what the product makes of h; this fits the product
    itself, with several times as many unknowns. The checkpoint is an ordinary one of its family, with no
    parameter more than the pruned model.

    Attributes:
        ridge: Holds back each entry of Δ by this fraction of the energy of what it multiplies. `auto` tries
            several, and no patch at all, on held-out calibration tokens.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True
    ridges: ClassVar[Sequence[float]] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    usual_ridge: ClassVar[float] = 0.03

    ridge: Any = 0.03  # a number or `auto`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sites != "one_per_interface":
            raise ConfigError(
                f"patch=mlp_refit has one site at each interface: the MLP before it. patch.sites={self.sites} isn't "
                "possible. Leave patch.sites out."
            )

    @property
    def is_matrix(self) -> bool:
        """A matrix beside a weight."""
        return False

    def check(self, decoder: Decoder) -> None:
        """Refuse families whose MLPs have no single last product that writes to the stream as it is."""
        for layer in decoder.layers:
            mlp_product(layer)

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """On the weight of the MLP before each interface."""
        if any(gap.start == 0 for gap in interfaces):
            raise ConfigError(
                "patch=mlp_refit needs a layer before the gap, but layer 0 is removed. Keep it with "
                "pruner.protect_first=1, or use another patch."
            )
        return [Site(gap.start, gap.end, gap.end, branch="mlp_weight") for gap in interfaces]

    def gram(self, site: Site) -> RefitGram:
        """The stream before the gap and what the last MLP's product reads, and the stream after."""
        return RefitGram(site.start, site.end, self.relative)

    def prior(self, gram: Mapping[str, Tensor]) -> Tensor:
        """The identity for the stream, nothing for the rest."""
        return torch.eye(len(gram["xx"]) - 1, gram["xy"].shape[1], dtype=torch.float64)

    def operators(self, gram: Mapping[str, Tensor], ridge: float) -> tuple[list[nn.Module], Solution]:
        """Regress what the gap adds on what the product reads."""
        size = gram["xy"].shape[1]
        read = slice(size, -1)
        rest = {
            "xx": gram["xx"][read, read],
            "xy": gram["xy"][read] - gram["xx"][read, :size],
            "bias": torch.zeros(()),
        }
        weight = solve(rest, ridge * energies(rest["xx"]), torch.zeros_like(rest["xy"])).matrix
        return [LinearMap(weight)], Solution(torch.cat([torch.eye(size, dtype=torch.float64), weight]))
