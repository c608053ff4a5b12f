"""A map of the stream after an interface and the weight before it, solved together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.errors import ModelError, require_number
from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.patches.before_interface import STREAM_SHARE, RefitWithMap, before_the_map
from linearpatch.patches.least_squares import Solution, energies, solve, unshrunk
from linearpatch.patches.patch import Patch
from linearpatch.patches.penalty import Penalty
from linearpatch.registry import component, components


@component("patch", "refit")
@dataclass(frozen=True)
class Refit(RefitWithMap):
    """x ↦ x W + b after an interface, and a new weight for the last product of the MLP before it.

    Most of what removed layers compute isn't linear in the stream, and no matrix at an interface can make up for that.
    But what the last product of the MLP before the interface reads, h, are many nonlinear functions of the token, and a
    weight decides what becomes of them. So y ≈ x W + h V + b is solved by least squares over both. V comes
    before the map then: the weight changes by Δ with Δ W ≈ V, and W and b are solved once more for the stream
    x + h Δ that this gives. Before a removed MLP stands an attention, whose output projection is the one that changes
    then. The model has as many parameters as with `lstsq` and its bias, and takes as long.

    Attributes:
        ridge: Holds back each entry of V by this fraction of the energy of what it multiplies; a hundredth of it
            pulls W toward the identity. `auto`: both, each for itself, with the lowest error on held-out calibration
            tokens.
        gain: Enlarges how outputs differ from their mean, from which a regression falls short: a number, or `matched`,
            as much as the stream past the interface does (with weighting=none a few massive tokens decide that). 1
            leaves the least-squares solution as it is. 1.15 was best on WikiText-2's validation text for 5, 7 and 9
            removed layers.
        fall_back: Where the MLPs of a family don't end in output projections that write to the stream (a norm behind
            them, as Gemma 2 and 3 have), fit the map alone: `lstsq` with a bias and these settings. false: such a
            model is rejected.
    """

    gain: Any = 1.15
    fall_back: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("patch.gain", self.gain, "matched", zero=False)

    def for_model(self, decoder: Decoder) -> Patch:
        """The map alone, where it falls back."""
        if not self.fall_back:
            return self
        try:
            self.check(decoder)
        except ModelError:
            ridge = self.ridge if self.ridge == "auto" else STREAM_SHARE * self.ridge
            shared = {name: getattr(self, name) for name in ("gain", "weighting", "sequential", "compare")}
            alone: Patch = components("patch")["lstsq"](bias=True, ridge=ridge, **shared)
            return alone
        return self

    def draft(self) -> Patch:
        """The map alone, a tenth of the work; each token by its share of its norm, so that none owns the fit."""
        stand_in: Patch = components("patch")["lstsq"](bias=True, ridge=1e-4, weighting="relative")
        return stand_in

    def regression(self, gram: Mapping[str, Tensor], penalty: Penalty) -> Solution:
        """W over V, solved for together."""
        size = gram["xy"].shape[1]
        assert penalty.stream is not None
        energy = energies(gram["xx"][:-1, :-1])
        held_back = torch.cat([penalty.stream * energy[:size], penalty.ridge * energy[size:]])
        return solve(gram, held_back, self.prior(gram))

    def operators(
        self, gram: Mapping[str, Tensor], penalty: Penalty, check: Mapping[str, Tensor] | None = None
    ) -> tuple[list[nn.Module], Solution]:
        """Solve for both, move V before the map, and solve for the map again."""
        size = gram["xy"].shape[1]
        assert penalty.stream is not None
        joint = self.regression(gram, penalty).matrix
        weight = before_the_map(joint[size:], joint[:size])

        # Rows [x, h, 1] times this are [x + h Δ, 1]: sums of products with the new weight follow from those at hand.
        rows = gram["xx"].new_zeros(len(gram["xx"]), size + 1)
        rows[:size, :size].fill_diagonal_(1)
        rows[size:-1, :size] = weight
        rows[-1, -1] = 1
        moved = _moved(gram, rows)
        held_back = penalty.stream * energies(moved["xx"][:-1, :-1])
        mapped = solve(moved, held_back, torch.eye(size).to(held_back))
        if penalty.stream < inf:
            mapped = unshrunk(mapped, moved, self.gain, None if check is None else _moved(check, rows))
        whole = torch.cat([mapped.matrix, weight @ mapped.matrix])
        return [LinearMap(weight), LinearMap(mapped.matrix, mapped.bias)], replace(mapped, matrix=whole)


def _moved(gram: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The sums of products of rows x times a matrix."""
    return {**gram, "xx": rows.T @ gram["xx"] @ rows, "xy": rows.T @ gram["xy"]}
