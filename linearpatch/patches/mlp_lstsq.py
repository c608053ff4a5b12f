"""A least-squares map of one MLP's output, which becomes part of that MLP's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from linearpatch.calibration.gram import MlpGram
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.views import Interface, Site
from linearpatch.models.writers import mlp_writer
from linearpatch.patches.least_squares import LeastSquaresPatch, Solution, penalty_of, solve
from linearpatch.registry import component


@component("patch", "mlp_lstsq")
@dataclass(frozen=True)
class MlpLeastSquares(LeastSquaresPatch):
    """m ↦ m A on what the last layer before the gap adds by its MLP, so that the stream meets its target.

    ReplaceMe, section 3.2 (closed form): minimises Σ w ‖m A − (x_end − x_start + m)‖² + λ ‖A − I‖². A is folded
    into the MLP's last product, so that the checkpoint is an ordinary one of its family.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sites != "one_per_interface":
            raise ConfigError(
                f"patch=mlp_lstsq has one site at each interface: the MLP before it. patch.sites={self.sites} isn't "
                "possible. Leave patch.sites out."
            )

    def check(self, decoder: Decoder) -> None:
        """Refuse families with a norm between the MLP and the stream."""
        for layer in decoder.layers:
            mlp_writer(layer)

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """On the MLP of the layer before each interface."""
        if any(gap.start == 0 for gap in interfaces):
            raise ConfigError(
                "patch=mlp_lstsq needs a layer before the gap, but layer 0 is removed. Keep it with "
                "pruner.protect_first=1, or use another patch."
            )
        return [Site(gap.start, gap.end, gap.end, branch="mlp") for gap in interfaces]

    def gram(self, site: Site) -> MlpGram:
        """What the MLP adds, and what it would have to add."""
        return MlpGram(site.start, site.end, self.relative)

    def operators(self, gram: Mapping[str, Tensor], ridge: float) -> tuple[list[nn.Module], Solution]:
        """A map of the MLP's output."""
        solution = solve(gram, penalty_of(gram, ridge), self.prior(gram))
        return [LinearMap(solution.matrix)], solution
