"""What hidden units of removed MLPs say about what their interface adds to the stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from linearpatch.calibration.gram import FP64_BYTES, PairGram, normalised
from linearpatch.calibration.statistics import Accumulator, LayerInput, PairSums
from linearpatch.models.decoder import Decoder
from linearpatch.models.gated_units import GatedUnits
from linearpatch.models.modeling_linearpatch import EPSILON


@dataclass(frozen=True)
class UnitGram(PairGram):
    """Rows x are [x, f(x), 1] with f the values of some units at the stream before an interface; rows y are past it.

    Attributes:
        epsilon: Added to the mean square of the stream.
        units_name: What identifies the units among those of a model.
        units: They themselves.
    """

    epsilon: float = EPSILON
    units_name: str = ""
    units: GatedUnits | None = field(default=None, compare=False, repr=False)

    @property
    def has_bias(self) -> bool:
        """Always."""
        return True

    def width(self, decoder: Decoder) -> int:
        """Those of the stream and the units."""
        assert self.units is not None
        return decoder.hidden_size + self.units.gate.shape[1]

    def identity(self) -> dict[str, Any]:
        """The name stands for the units."""
        return asdict(replace(self, units=None))

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """The stream and the units; the stream past the interface."""
        assert self.units is not None
        x = before.tokens.to(after)
        normed = normalised(x, self.epsilon)
        return torch.cat([x, self.units.of(normed.float()).to(x)], dim=-1), after


@dataclass(frozen=True)
class UnitScores(UnitGram):
    """How much of what an interface adds to the stream each unit explains alone, by a multiple of a vector and a mean.

    Result `explained`: `[units]`, the part of Σ w ‖y − x‖² about the mean; ‖Σ w f (y − x)‖² / Σ w f², both about means.
    """

    def sum_bytes(self, decoder: Decoder) -> int:
        """Those of the products of each unit and each channel."""
        return FP64_BYTES * (self.width(decoder) - decoder.hidden_size) * decoder.hidden_size

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of products with each unit, none between units."""
        return _Scores(self)


class _Scores(PairSums):
    def __init__(self, spec: UnitScores) -> None:
        super().__init__(spec.start_layer, spec.end_layer)
        self.spec = spec

    def observe_pair(self, before: LayerInput, after: LayerInput) -> None:
        stream = after.tokens.double()
        rows, _ = self.spec.rows(before, stream)
        size = stream.shape[1]
        added, units = stream - rows[:, :size], rows[:, size:]
        weight = self.spec.weights(after, stream.square().sum(dim=-1, keepdim=True))
        weight = torch.ones_like(stream[:, :1]) if weight is None else weight
        self.accumulate_product("cross", weight * units, added)
        self.accumulate(weight=weight.sum(dim=0), units=(weight * units).sum(dim=0), added=(weight * added).sum(dim=0))
        self.accumulate(squares=(weight * units.square()).sum(dim=0))

    def result(self) -> dict[str, Tensor]:
        total = self.sums["weight"]
        mean = self.sums["units"] / total
        cross = self.sums["cross"] - mean[:, None] * self.sums["added"]
        variance = self.sums["squares"] - total * mean.square()
        floor = torch.finfo(torch.float64).tiny + 1e-9 * variance.mean()
        return {"explained": (cross.square().sum(dim=1) / variance.clamp_min(floor)).cpu()}
