"""The unconstrained map with the least squared error, and thinner ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.calibration.canonical import CanonicalBound
from linearpatch.calibration.gram import Gram
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_number, require_range
from linearpatch.models.decoder import Decoder, norm_epsilon
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.modeling_linearpatch import EPSILON, FeatureMap, LinearMap
from linearpatch.patches.least_squares import (
    LeastSquaresPatch,
    Solution,
    centred,
    factor_of,
    penalty_of,
    solve,
    unshrunk,
)
from linearpatch.patches.patch import Patch, StreamPatch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component

log = logging.getLogger(__name__)

FEATURES = ("hidden", "rms_normalised")
FORMS = ("full", "low_rank", "diagonal_plus_low_rank")
SWEEPS = 10  # of the alternation between a diagonal and what is left to the product


@component("patch", "lstsq", title="least squares")
@dataclass(frozen=True)
class LeastSquares(StreamPatch, LeastSquaresPatch):
    """x ↦ x W + b minimising Σ w ‖x W + b − y‖² + λ ‖W − I‖² over calibration tokens, y past the interface.

    The map of Ghosted Layers (closed form) with choices of its own.

    Attributes:
        bias: Whether there is a b; it isn't held back by the ridge.
        features: What the map reads: `hidden` is the stream. With `rms_normalised` it reads the stream over
            its root mean square, as the removed layers did, and adds to the stream: x ↦ x + n(x) W + b, with
            the ridge toward W = 0. llama.cpp has such a map as a layer of its own.
        form: `full`; `low_rank`: the identity (or 0) and a product of two thin matrices;
            `diagonal_plus_low_rank`: a scale of each channel and such a product.
        rank: Of the product.
        gain: Enlarges how outputs differ from their mean, from which a regression falls short: a number, or `matched`,
            as much as the stream past the interface does. Needs a b, and the map in full.
        bound: Record NBL's bound on the relative error of any linear map of what was read to the stream past the
            interface (`calibration.canonical`), as the diagnostic `bound`.
        epsilon: Added to the mean square of the stream, with features=rms_normalised. null: what the model's norms add.
    """

    bias: bool = False
    features: str = "hidden"
    form: str = "full"
    rank: int = 64
    gain: Any = 1.0
    bound: bool = field(default=False, metadata={"identity": "changed"})
    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("patch.features", self.features, FEATURES)
        require_choice("patch.form", self.form, FORMS)
        require_range("patch.rank", self.rank, low=1)
        if self.form == "full" and self.rank != type(self).rank:
            log.warning(
                "patch.rank=%d has no effect with patch.form=full. Use patch.form=low_rank or "
                "patch.form=diagonal_plus_low_rank, or leave patch.rank out.", self.rank,
            )  # fmt: skip
        if self.form == "diagonal_plus_low_rank" and self.features != "hidden":
            raise ConfigError(
                f"patch.form=diagonal_plus_low_rank scales what the map reads, and patch.features={self.features} adds "
                "to the stream. Use patch.form=low_rank, or patch.features=hidden."
            )
        require_number("patch.gain", self.gain, "matched", zero=False)
        if self.epsilon is not None:
            require_range("patch.epsilon", self.epsilon, low=0)
        if self.gain != 1 and not (self.bias and self.is_matrix):
            raise ConfigError(
                f"patch.gain={self.gain} acts around the mean of the map's outputs: it needs patch.bias=true, "
                "patch.features=hidden and patch.form=full."
            )

    def draft(self) -> Patch:
        """Without the bound, which changes no operator."""
        return replace(super().draft(), bound=False)  # type: ignore[call-arg]

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Solve, and say how good a linear map could be where that is asked for."""
        if not self.bound:
            return super().fit(workspace, sites)
        bounds = [CanonicalBound(site.interface.start, site.interface.end) for site in sites]
        listening = [*self.interface_statistics(sites), *bounds]  # in one pass
        results = workspace.collect(*listening, description="fit")[-len(bounds) :]
        return [
            replace(placed, diagnostics={**placed.diagnostics, "bound": result["bound"].item()})
            for placed, result in zip(super().fit(workspace, sites), results, strict=True)
        ]

    def for_model(self, decoder: Decoder) -> Patch:
        """With the epsilon of the model's norms, where the map reads as they do."""
        if not self.normalised or self.epsilon is not None:
            return self
        return replace(self, epsilon=norm_epsilon(decoder))

    def check_size(self, hidden_size: int) -> None:
        """Reject a product that would be no thinner than the map itself."""
        if self.form != "full" and self.rank > hidden_size:
            raise ConfigError(
                f"patch.rank is {self.rank}, and the stream has {hidden_size} channels. "
                f"Allowed: 1 to {hidden_size}; below half of that the product is smaller than a matrix."
            )

    def simpler(self) -> Mapping[str, Patch]:
        """With each token by its share of its norm, too."""
        if self.weighting == "relative":
            return super().simpler()
        return {**super().simpler(), "gain=1, weighting=relative": replace(self, weighting="relative", gain=1)}

    @property
    def normalised(self) -> bool:
        """Whether the map reads the stream over its root mean square."""
        return self.features == "rms_normalised"

    @property
    def _epsilon(self) -> float:
        return EPSILON if self.epsilon is None else self.epsilon

    @property
    def adds_layers(self) -> bool:
        """Where the map reads what layers read."""
        return self.normalised

    @property
    def is_matrix(self) -> bool:
        """Neither thin nor of normalised features."""
        return self.form == "full" and not self.normalised

    def gram(self, site: Site) -> Gram:
        """The streams before and after the interface."""
        start, end = site.interface.start, site.interface.end
        return Gram(start, end, self.weighting, self.bias, self.normalised, self._epsilon)

    def prior(self, gram: Mapping[str, Tensor]) -> Tensor:
        """The identity, or nothing to add."""
        identity = super().prior(gram)
        return torch.zeros_like(identity) if self.normalised else identity

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """In the form asked for."""
        if self.form != "full" and penalty.ridge < inf:
            return self._thin(gram, penalty_of(gram, penalty.ridge), self.prior(gram))[1]
        return solve(gram, penalty_of(gram, penalty.ridge), self.prior(gram))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """Solve in the form asked for."""
        if self.form != "full" and penalty.ridge < inf:
            operator, solution = self._thin(gram, penalty_of(gram, penalty.ridge), self.prior(gram))
            return [operator], solution
        solution = self.regression(gram, penalty)
        if self.normalised:
            return [FeatureMap([solution.matrix], True, bias=solution.bias, epsilon=self._epsilon)], solution
        if self.gain != 1 and penalty.ridge < inf:
            solution = unshrunk(solution, gram, self.gain, check)
        return [LinearMap(solution.matrix, solution.bias)], solution

    def _thin(self, gram: Mapping[str, Tensor], penalty: float, prior: Tensor) -> tuple[nn.Module, Solution]:
        """W₀ or a diagonal, and a product of rank r: reduced-rank regression, in turns with the diagonal."""
        xx, xy, mean_x, mean_y = centred(gram)
        factor = factor_of(xx, penalty)
        kept = prior
        for _ in range(SWEEPS if self.form == "diagonal_plus_low_rank" else 1):
            # With W the full solution for what is left, the best of rank r is W V Vᵀ, V its leading outputs.
            left = xy - xx @ kept
            full = torch.cholesky_solve(left, factor)
            outputs = torch.linalg.eigh(left.T @ full).eigenvectors[:, -self.rank :]
            first, second = full @ outputs, outputs.T
            if self.form == "diagonal_plus_low_rank":
                target = xy.diagonal() - (xx @ first * second.T).sum(dim=1)
                kept = ((target + penalty) / (xx.diagonal() + penalty)).diag()
        matrix = kept + first @ second
        bias = None if mean_x is None or mean_y is None else mean_y - mean_x @ matrix
        scale = kept.diagonal() if self.form == "diagonal_plus_low_rank" else None
        operator = FeatureMap([first, second], self.normalised, scale, bias, self._epsilon)
        return operator, Solution(matrix, bias)
