"""What patches share that change the MLP before an interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

from linearpatch.calibration.expert_use import ExpertUse, unused_experts
from linearpatch.calibration.gram import PairGram, RefitGram
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.places import InProjection, OnStream, Place
from linearpatch.models.projections import ExpertProjection, check_experts
from linearpatch.models.units import Interface, sublayer_before
from linearpatch.patches.least_squares import LeastSquaresPatch
from linearpatch.patches.patch import Patch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import name_of

STREAM_SHARE = 0.01  # of the ridge holds back the map: it has a fraction of the unknowns and does most of the work
SMALLEST = 0.03  # what the map shrinks by more than that isn't asked of the weight before it


@dataclass(frozen=True)
class BeforeInterfacePatch(LeastSquaresPatch):
    """Base of the patches that sit at the MLP of the layer before each interface."""

    @abstractmethod
    def check(self, decoder: Decoder) -> None:
        """Reject families whose MLPs don't write to the stream as it needs."""
        super().check(decoder)

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """At the MLP of the layer before each interface."""
        if any(interface.start == 0 for interface in interfaces):
            raise ConfigError(
                f"patch={name_of(self)} needs a layer before the interface, but layer 0 is removed, or its attention. "
                "Keep it: set pruner.protect_first=1 (leave it out of pruner.layers, where you name them), or use "
                "another patch."
            )
        return [
            Site(interface, interface.reader, place) for interface in interfaces for place in self.places(interface)
        ]

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Fit as others do, and say which experts the text doesn't reach.

        Raises:
            NumericsError: there is no unique solution.
        """
        changed = {site: site.place.expert_layer(workspace.decoder) for site in sites}
        uses = [ExpertUse(layer) for layer in sorted({layer for layer in changed.values() if layer is not None})]
        if not uses:
            return self.fit_sites(workspace, sites)
        workspace.collect(*uses, *self.interface_statistics(sites), description="fit")  # all from the same pass
        unused = {use.layer: unused_experts(use.layer, workspace.statistic(use), name_of(self)) for use in uses}
        return [
            placed
            if (layer := changed[placed.site]) is None
            else replace(placed, warning=" ".join(filter(None, (placed.warning, unused[layer]))))
            for placed in self.fit_sites(workspace, sites)
        ]

    def fit_sites(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Gather sums of products, and solve."""
        return super().fit(workspace, sites)

    @abstractmethod
    def places(self, interface: Interface) -> Sequence[Place]:
        """Where operators act at an interface."""


@dataclass(frozen=True)
class RefitPatch(BeforeInterfacePatch):
    """Base of the patches that fit the output projection of that MLP again.

    Attributes:
        ridge: Holds back each entry of the new weight by this fraction of the energy of what it multiplies. `auto`:
            the one with the lowest error on held-out calibration tokens.
        weighting: `capped`, `none` or `relative`; see `LeastSquaresPatch`.
    """

    first: ClassVar[Penalty] = Penalty(0.3)  # with twenty tokens an unknown; with fewer, more is best
    larger: ClassVar[Sequence[float]] = (10, 100)
    version: ClassVar[int] = 3  # of what `auto` and `matched` are

    ridge: Any = 0.03  # a number or `auto`
    weighting: str = "capped"

    def check(self, decoder: Decoder) -> None:
        """Reject families without such a projection."""
        super().check(decoder)
        projections = [InProjection.projection_of(decoder, index) for index in range(decoder.num_layers)]
        check_experts(decoder, [one for one in projections if isinstance(one, ExpertProjection)])

    @property
    def is_matrix(self) -> bool:
        """A matrix beside a weight."""
        return False

    def unknowns(self, decoder: Decoder) -> int:
        """A row for each channel of the stream, and for each hidden unit of the widest MLP."""
        widths = (InProjection.width(decoder, index) for index in range(decoder.num_layers))
        return decoder.hidden_size + max(widths)

    def gram(self, site: Site) -> PairGram:
        """The stream before the interface and what the last MLP's product reads, and the stream after."""
        return RefitGram(site.interface.start, site.interface.end, self.weighting)

    def prior(self, gram: Mapping[str, Tensor]) -> Tensor:
        """The identity for the stream, nothing for the rest."""
        return torch.eye(len(gram["xx"]) - 1, gram["xy"].shape[1]).to(gram["xy"])


@dataclass(frozen=True)
class RefitWithMap(RefitPatch):
    """Base of those that fit a map of the stream after the interface together with that projection."""

    def places(self, interface: Interface) -> Sequence[Place]:
        """In the output projection before it, and on the stream after it."""
        return [projection_before(interface), OnStream(interface.reader)]

    def simpler(self) -> Mapping[str, Patch]:
        """The map alone, too, as in a search."""
        return {**super().simpler(), "lstsq, as in a search": self.draft()}

    def together(self, sites: Sequence[Site]) -> list[list[Site]]:
        """Both sites of an interface."""
        return [list(pair) for _, pair in groupby(sites, key=lambda site: site.interface)]

    @property
    def penalty(self) -> Penalty:
        """Beside the ridge, that of the map."""
        ridge = super().penalty.ridge
        return Penalty(ridge, STREAM_SHARE * ridge)


def projection_before(interface: Interface) -> InProjection:
    """The output projection that writes to the stream last before an interface: of an MLP, or of an attention."""
    before = sublayer_before(interface.start)
    return InProjection(before.layer, before.part)


def before_the_map(behind: Tensor, matrix: Tensor) -> Tensor:
    """Δ with Δ W ≈ V: exact in directions that W keeps, and small in those that it nearly loses.

    Args:
        behind: V, `[H, D]`.
        matrix: W, `[D, D]`.
    """
    # V Wᵀ (W Wᵀ + s² I)⁻¹: each singular value σ of W is divided by as σ / (σ² + s²), without a decomposition.
    damped = matrix @ matrix.T
    damped.diagonal().add_(SMALLEST**2)
    before: Tensor = torch.cholesky_solve(matrix @ behind.T, torch.linalg.cholesky(damped)).T
    return before
