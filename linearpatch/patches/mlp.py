"""A small MLP at an interface: hidden units of the removed MLPs with a new output projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.calibration.gram import PairGram
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.units import UnitGram, UnitScores
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_number, require_range
from linearpatch.models.decoder import Decoder, norm_epsilon
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.gated_units import GatedUnits, check_gated, units_of
from linearpatch.models.modeling_linearpatch import EPSILON, GatedMlp
from linearpatch.models.units import Interface
from linearpatch.patches.additions import enlarged_addition, normed_map_alone, solve_addition, sums_of_additions
from linearpatch.patches.least_squares import LeastSquaresPatch, Solution, Sums, centred, energies
from linearpatch.patches.patch import Patch, StreamPatch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component

SCREENED = 4  # candidates for each unit that is kept: those that explain most alone


@component("patch", "mlp", title="MLP")
@dataclass(frozen=True)
class Mlp(StreamPatch, LeastSquaresPatch):
    """x ↦ x + (silu(n(x) G) ⊙ n(x) U) D + b: hidden units of the removed MLPs, which read the stream before them.

    n(x) is the stream over its root mean square. Those units are taken that explain most of what the removed layers
    add, one after the other, each beside those taken before; then D and b are solved by least squares. It is a layer
    without attention to formats that have such layers, and distillation trains all of it.

    Attributes:
        width: How many units.
        ridge: Holds back each entry of D by this fraction of the energy of what it multiplies. `auto`: the one with the
            lowest error on held-out calibration tokens.
        gain: Enlarges how the targets differ from their mean, from which a regression falls short: a number, or
            `matched`, so that what comes out varies as much on the held-out tokens as the stream past the interface.
        weighting: `capped`, `none` or `relative`; see `LeastSquaresPatch`.
        epsilon: Added to the mean square of the stream. null: what the model's norms add.
    """

    width: int = 512
    ridge: Any = "auto"
    gain: Any = "matched"
    weighting: str = "capped"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("patch.width", self.width, low=1)
        require_number("patch.gain", self.gain, "matched", zero=False)
        if self.epsilon is not None:
            require_range("patch.epsilon", self.epsilon, low=0)

    def for_model(self, decoder: Decoder) -> Patch:
        """With the epsilon of the model's norms."""
        return self if self.epsilon is not None else replace(self, epsilon=norm_epsilon(decoder))

    def check(self, decoder: Decoder) -> None:
        """Reject families whose MLPs have other hidden units."""
        super().check(decoder)
        for index in range(decoder.num_layers):
            check_gated(decoder, index)

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """On the stream after the interface, but not as the first layer, which must have attention where it serves."""
        if any(interface.start == 0 for interface in interfaces):
            raise ConfigError(
                "patch=mlp needs a layer before the interface, but layer 0 is removed. Keep it: set "
                "pruner.protect_first=1 (leave it out of pruner.layers, where you name them), or use another patch."
            )
        for interface in interfaces:
            if not removed_mlps(interface):
                raise ConfigError(
                    f"patch=mlp takes hidden units of the removed MLPs, and at {interface} no MLP is removed. Use "
                    "patch=lstsq or patch=refit, or remove MLPs or layers."
                )
        return super().place(interfaces)

    @property
    def is_matrix(self) -> bool:
        """An MLP."""
        return False

    @property
    def adds_layers(self) -> bool:
        """Always."""
        return True

    def unknowns(self, decoder: Decoder) -> int:
        """As many as units are compared."""
        return SCREENED * self.width

    def draft(self) -> Patch:
        """A map of the same stream, which costs no passes for each interface."""
        return normed_map_alone(self.epsilon)

    def simpler(self) -> Mapping[str, Patch]:
        """That map, too."""
        return {**super().simpler(), "lstsq, as in a search": self.draft()}

    def interface_statistics(self, sites: Sequence[Site]) -> Sequence[PairGram]:
        """None in advance: they depend on the model's weights."""
        return ()

    def check_statistics(self, sites: Sequence[Site]) -> Sequence[PairGram]:
        """None in advance, either."""
        return ()

    def gram(self, site: Site) -> UnitGram:
        """The stream before the interface and the stream past it; no units yet."""
        return UnitGram(site.interface.start, site.interface.end, self.weighting, self._epsilon)

    @property
    def _epsilon(self) -> float:
        return EPSILON if self.epsilon is None else self.epsilon

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Score all units in one pass, those that explain most alone together in another, and solve.

        Raises:
            NumericsError: there is no unique solution.
        """
        screened = self._screened(workspace, sites)
        specs = [_with_units(self.gram(site), units) for site, units in zip(sites, screened, strict=True)]
        fitted: list[PlacedOperator] = []
        for site, units, sums in zip(sites, screened, self.sums(workspace, specs), strict=True):
            size = sums.gram["xy"].shape[1]
            with self.solvable([site], sums.gram):
                chosen = leading_units(sums.gram, min(self.width, len(units)), self.penalty.ridge)
            rows = torch.cat([torch.arange(size), size + chosen, torch.tensor([size + len(units)])])
            kept = units.take(chosen)
            part = Sums(
                _with_units(self.gram(site), kept),
                {**_part(sums.gram, rows), "gate": kept.gate, "up": kept.up},
                sums.check and _part(sums.check, rows),
            )
            fitted += self.solved([site], part, self.penalty_for(workspace, part))
        return fitted

    def _screened(self, workspace: Workspace, sites: Sequence[Site]) -> list[GatedUnits]:
        """Of each interface, the units that explain most alone."""
        found = []
        everything = [units_of(workspace.decoder, removed_mlps(site.interface)) for site in sites]
        statistics: list[Statistic] = [
            UnitScores(site.interface.start, site.interface.end, self.weighting, self._epsilon, units.name, units)
            for site, units in zip(sites, everything, strict=True)
        ]
        for units, result in zip(everything, workspace.collect(*statistics, description="units"), strict=True):
            best = result["explained"].topk(min(SCREENED * self.width, len(units))).indices
            found.append(units.take(best.sort().values))
        return found

    def prior(self, gram: Mapping[str, Tensor]) -> Tensor:
        """The stream as it is, and nothing added."""
        return torch.eye(len(gram["xx"]) - 1, gram["xy"].shape[1]).to(gram["xy"])

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """The identity over D."""
        return solve_addition(gram, penalty.ridge * energies(sums_of_additions(gram)["xx"][:-1, :-1]))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """The units with D and b."""
        size = gram["xy"].shape[1]
        held_back = penalty.ridge * energies(sums_of_additions(gram)["xx"][:-1, :-1])
        solution = enlarged_addition(gram, held_back, self.gain, check)
        bias = torch.zeros_like(solution.matrix[0]) if solution.bias is None else solution.bias
        return [GatedMlp(gram["gate"], gram["up"], solution.matrix[size:], bias, self._epsilon)], solution


def removed_mlps(interface: Interface) -> range:
    """Layers whose MLPs were removed there; the MLP of layer i reads the stream i + ½."""
    return range(ceil(interface.start - 0.5), floor(interface.end))


def leading_units(gram: Mapping[str, Tensor], count: int, ridge: float) -> Tensor:
    """The units that explain most of what is added, one after the other, each beside those before it.

    Orthogonal matching pursuit, by a Cholesky factorisation whose next pivot explains most.

    Args:
        gram: Sums of products of rows [x, f(x), 1].
        count: How many.
        ridge: A fraction of each unit's energy that is added to it, so that a copy of another unit isn't worth much.

    Returns:
        Their indices in ascending order.
    """
    xx, xy, _, _ = centred(sums_of_additions(gram))
    held_back = ridge * energies(xx)
    energy = xx.diagonal() + held_back  # of what the units chosen so far leave of each
    least = 1e-9 * energy.mean()
    products, factor = xy.clone(), xx.new_zeros(len(xx), count)
    chosen: list[int] = []
    for step in range(count):
        explained = products.square().sum(dim=1) / energy.clamp_min(least)
        explained[chosen] = -1
        best = int(explained.argmax())
        column = xx[:, best] - factor[:, :step] @ factor[best, :step]
        column[best] += held_back[best]
        column = column / energy[best].clamp_min(least).sqrt()
        products -= column[:, None] * (products[best] / energy[best].clamp_min(least).sqrt())
        energy = energy - column.square()
        factor[:, step] = column
        chosen.append(best)
    return torch.tensor(sorted(chosen))


def _with_units(spec: UnitGram, units: GatedUnits) -> UnitGram:
    return replace(spec, units=units, units_name=units.name)


def _part(gram: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The sums of products of some rows."""
    rows = rows.to(gram["xx"].device)
    return {**gram, "xx": gram["xx"][rows][:, rows], "xy": gram["xy"][rows]}
