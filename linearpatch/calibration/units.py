"""What hidden units of removed MLPs say about what their interface adds to the stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from linearpatch.calibration.gram import PairGram
from linearpatch.calibration.statistics import Accumulator, LayerInput
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

    def identity(self) -> dict[str, Any]:
        """The name stands for the units."""
        return asdict(replace(self, units=None))

    def rows(self, before: LayerInput, after: Tensor) -> tuple[Tensor, Tensor]:
        """The stream and the units; the stream past the interface."""
        assert self.units is not None
        x = before.tokens.to(after)
        normed = x * (x.square().mean(dim=-1, keepdim=True) + self.epsilon).rsqrt()
        return torch.cat([x, self.units.of(normed.float()).to(x)], dim=-1), after


@dataclass(frozen=True)
class UnitScores(UnitGram):
    """How much of what an interface adds to the stream each unit explains alone, by a multiple of a vector and a mean.

    Result `explained`: `[units]`, the part of Σ w ‖y − x‖² about the mean; ‖Σ w f (y − x)‖² / Σ w f², both about means.
    """

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of products with each unit, none between units."""
        return _Scores(self)


class _Scores:
    def __init__(self, spec: UnitScores) -> None:
        self.spec = spec
        self.before: LayerInput | None = None
        self.sums: dict[str, Tensor] = {}

    def observe(self, stream: LayerInput) -> None:
        if stream.index == self.spec.start_layer:
            self.before = stream
        elif stream.index == self.spec.end_layer:
            assert self.before is not None
            after = stream.tokens.double()
            rows, _ = self.spec.rows(self.before, after)
            size = after.shape[1]
            added, units = after - rows[:, :size], rows[:, size:]
            weight = self.spec.weights(stream, after.square().sum(dim=-1, keepdim=True))
            weight = torch.ones_like(after[:, :1]) if weight is None else weight
            self._add(weight=weight, units=weight * units, added=weight * added, squares=weight * units.square())
            self._keep("cross", (weight * units).T @ added)
            self.before = None

    def _add(self, **rows: Tensor) -> None:
        for name, values in rows.items():
            self._keep(name, values.sum(dim=0))

    def _keep(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def result(self) -> dict[str, Tensor]:
        total = self.sums["weight"]
        mean = self.sums["units"] / total
        cross = self.sums["cross"] - mean[:, None] * self.sums["added"]
        variance = self.sums["squares"] - total * mean.square()
        floor = torch.finfo(torch.float64).tiny + 1e-9 * variance.mean()
        return {"explained": (cross.square().sum(dim=1) / variance.clamp_min(floor)).cpu()}
