"""A refit whose map reads the normalised stream, so that it is a layer of its own to formats that serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.calibration.gram import NormedGram
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import require_number, require_range
from linearpatch.models.decoder import Decoder, norm_epsilon
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.fingerprint import parameter_hash
from linearpatch.models.modeling_linearpatch import EPSILON, FeatureMap, LinearMap
from linearpatch.patches.additions import enlarged_addition, normed_map_alone, solve_addition, sums_of_additions
from linearpatch.patches.before_interface import RefitWithMap, before_the_map
from linearpatch.patches.least_squares import Solution, Sums, energies, relative_error
from linearpatch.patches.patch import Patch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component


@component("patch", "normed_refit", title="normed refit")
@dataclass(frozen=True)
class NormedRefit(RefitWithMap):
    """x ↦ x + n(x) W + b after an interface, and a new weight for the last product of the MLP before it.

    n(x) is the stream over its root mean square, as the norm before a layer has it. llama.cpp has such a map as a
    layer of its own, so that the model serves there; `refit`'s map is none. As there, y − x ≈ n(x) W + h V is solved
    first, V is moved before the map, and the map is solved again for the stream x + h Δ that this gives: here from a
    second pass over the tokens, since a norm isn't linear.

    Attributes:
        ridge: Holds back each entry of V by this fraction of the energy of what it multiplies; a hundredth of it
            pulls W toward 0. `auto`: both, each for itself, with the lowest error on held-out calibration tokens.
        gain: Enlarges how the targets differ from their mean, from which a regression falls short: a number, or
            `matched`, so that what comes out varies as much on the held-out tokens as the stream past the interface.
        epsilon: Added to the mean square of the stream. null: what the model's norms add.
    """

    ridge: Any = "auto"
    gain: Any = "matched"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("patch.gain", self.gain, "matched", zero=False)
        if self.epsilon is not None:
            require_range("patch.epsilon", self.epsilon, low=0)

    def for_model(self, decoder: Decoder) -> Patch:
        """With the epsilon of the model's norms."""
        return self if self.epsilon is not None else replace(self, epsilon=norm_epsilon(decoder))

    @property
    def adds_layers(self) -> bool:
        """Always."""
        return True

    def draft(self) -> Patch:
        """The map alone; each token by its share of its norm, so that none owns the fit."""
        return normed_map_alone(self.epsilon)

    def gram(self, site: Site) -> NormedGram:
        """The stream before the interface and that normalised, what the MLP's product reads, and the stream after."""
        return NormedGram(site.interface.start, site.interface.end, self.weighting, self._epsilon)

    def num_unknowns(self, gram: Mapping[str, Tensor]) -> int:
        """Those of the map and its bias, and those of the weight before it."""
        return int(gram["xy"].shape[1] + 1 + len(gram["change"]))

    @property
    def _epsilon(self) -> float:
        return EPSILON if self.epsilon is None else self.epsilon

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """The identity over W over V, the latter two solved for together."""
        size = gram["xy"].shape[1]
        energy = energies(sums_of_additions(gram)["xx"][:-1, :-1])
        held_back = torch.cat([self._stream(penalty) * energy[:size], penalty.ridge * energy[size:]])
        return solve_addition(gram, held_back)

    def fit_sites(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Solve for both, move V before the map, and solve for the map on the streams that this leaves.

        Raises:
            NumericsError: there is no unique solution.
        """
        groups = self.together(sites)
        jointly = self.sums(workspace, [self.gram(group[0]) for group in groups])
        begun = [self._fit_weight(workspace, group, sums) for group, sums in zip(groups, jointly, strict=True)]
        behind = self.sums(workspace, [fit.behind for fit in begun])
        return [
            placed
            for fit, sums in zip(begun, behind, strict=True)
            for placed in self.solved(
                fit.sites, replace(sums, gram={**sums.gram, "change": fit.change}), fit.penalty, error_before=fit.error
            )
        ]

    def _fit_weight(self, workspace: Workspace, sites: Sequence[Site], sums: Sums) -> _PartialFit:
        """Solve for both, and move V before the map."""
        gram, penalty = sums.gram, self.penalty_for(workspace, sums)
        size = gram["xy"].shape[1]
        with self.solvable(sites, gram):
            joint = self.regression(gram, penalty).matrix
        # What comes before the map to d after it is d + d W / r, r a typical root mean square: Σ n·x / Σ n·n.
        x, normed = slice(0, size), slice(size, 2 * size)
        typical = gram["xx"][x, normed].trace() / gram["xx"][normed, normed].trace()
        passes = torch.eye(size).to(joint) + joint[normed] / typical
        weight = LinearMap(before_the_map(joint[2 * size :], passes)).cpu()
        change = weight.weight.detach().T.double()
        behind = replace(self.gram(sites[0]), change=change, change_hash=parameter_hash([weight]))
        return _PartialFit(sites, behind, change, penalty, relative_error(Solution(self.prior(gram)), gram))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """The change of the weight, and the map after it."""
        size = gram["xy"].shape[1]
        held_back = self._stream(penalty) * energies(sums_of_additions(gram)["xx"][:-1, :-1])
        solution = enlarged_addition(gram, held_back, self.gain, check)
        bias = torch.zeros_like(solution.matrix[0]) if solution.bias is None else solution.bias
        behind = FeatureMap([solution.matrix[size:]], True, None, bias, self._epsilon)
        return [LinearMap(gram["change"]), behind], solution

    @staticmethod
    def _stream(penalty: Penalty) -> float:
        assert penalty.stream is not None
        return penalty.stream


@dataclass(frozen=True)
class _PartialFit:
    """A fit whose weight is known.

    Attributes:
        sites: Where its operators act.
        behind: Sums of products of the streams that the weight leaves.
        change: Of the weight, Δ.
        penalty: Holds the fit back.
        error: Without a patch.
    """

    sites: Sequence[Site]
    behind: NormedGram
    change: Tensor
    penalty: Penalty
    error: float
