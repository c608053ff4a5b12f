"""A new weight for the MLP before an interface, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.places import Place
from linearpatch.models.units import Interface
from linearpatch.patches.before_interface import RefitPatch, projection_before
from linearpatch.patches.least_squares import Solution, energies, solve
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component


@component("patch", "mlp_refit", title="MLP refit")
@dataclass(frozen=True)
class MlpRefit(RefitPatch):
    """The last product of the MLP before an interface, fitted again: x + h Δ ≈ y.

    h is what that product reads. `mlp_lstsq` can only turn what the product makes of h; this fits the product itself,
    with several times as many unknowns. Before a removed MLP it is the attention's output projection. Where whole
    layers are removed, the checkpoint is an ordinary one of its family, with no parameter more than the pruned model.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True

    def places(self, interface: Interface) -> Sequence[Place]:
        """In the output projection before it."""
        return [projection_before(interface)]

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """What the interface adds, regressed on what the product reads."""
        size = gram["xy"].shape[1]
        read = slice(size, -1)
        rest = {
            "xx": gram["xx"][read, read],
            "xy": gram["xy"][read] - gram["xx"][read, :size],
            "bias": torch.zeros(()),
        }
        weight = solve(rest, penalty.ridge * energies(rest["xx"]), torch.zeros_like(rest["xy"])).matrix
        return Solution(torch.cat([torch.eye(size).to(weight), weight]))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """The part of it that goes into the weight."""
        solution = self.regression(gram, penalty)
        return [LinearMap(solution.matrix[gram["xy"].shape[1] :])], solution
