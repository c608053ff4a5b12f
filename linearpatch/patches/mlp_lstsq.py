"""A least-squares map of one MLP's output, which becomes part of that MLP's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from linearpatch.calibration.gram import MlpGram
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Site
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.places import OnOutput, Place
from linearpatch.models.projections import check_changeable
from linearpatch.models.sublayers import MLP
from linearpatch.models.units import Interface, sublayer_before
from linearpatch.patches.before_interface import BeforeInterfacePatch
from linearpatch.patches.least_squares import Solution, penalty_of, solve
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component


@component("patch", "mlp_lstsq", title="MLP least squares")
@dataclass(frozen=True)
class MlpLeastSquares(BeforeInterfacePatch):
    """m ↦ m A on what the last layer before the interface adds by its MLP, so that the stream meets its target.

    ReplaceMe, section 3.2 (closed form): minimises Σ w ‖m A − (x_end − x_start + m)‖² + λ ‖A − I‖². A is folded
    into the MLP's last product, so that the checkpoint is an ordinary one of its family.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True

    def check(self, decoder: Decoder) -> None:
        """Reject families that normalise what their MLPs write, and quantised MLPs."""
        super().check(decoder)
        for index in range(decoder.num_layers):
            check_changeable(OnOutput.output_of(decoder, index))

    def places(self, interface: Interface) -> Sequence[Place]:
        """On the output of the MLP before it.

        Raises:
            ConfigError: an attention is the last before it.
        """
        before = sublayer_before(interface.start)
        if before.part != MLP:
            raise ConfigError(
                f"patch=mlp_lstsq acts on what an MLP adds before an interface, and before {interface} stands the "
                f"attention of layer {before.layer}. Use patch=lstsq or patch=refit, or pruner.unit=attention."
            )
        return [OnOutput(before.layer)]

    def gram(self, site: Site) -> MlpGram:
        """What the MLP adds, and what it would have to add."""
        return MlpGram(site.interface.start, site.interface.end, self.weighting)

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """A map of the MLP's output."""
        return solve(gram, penalty_of(gram, penalty.ridge), self.prior(gram))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """That map."""
        solution = self.regression(gram, penalty)
        return [LinearMap(solution.matrix)], solution
