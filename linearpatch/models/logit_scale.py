"""What a family does to the products of its head: a factor, a soft cap, or both, found from one forward pass.

Granite divides by what HyperCLOVA X multiplies by under the same name. So numbers of the configuration are only
candidates; which of them is meant, and how, is what fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Names of caps, tried first: where all logits are small a cap doesn't show.
CAPS = ("final_logit_softcapping", "output_logit_soft_cap")
# How far a factor that was measured may be from the number of the configuration that is meant.
SNAP = {torch.float32: 1e-5, torch.float64: 1e-9}
SNAP_IN_HALF_PRECISION = 4e-3


@dataclass(frozen=True)
class LogitScale:
    """Logits are `factor / divisor · head`, softly capped: `cap · tanh(factor / divisor · head / cap)`.

    Attributes:
        factor: By what the head's products are multiplied.
        divisor: By what they are divided, which rounds otherwise than its inverse as a factor.
        cap: What they can't exceed; None without one.
    """

    factor: float = 1.0
    divisor: float = 1.0
    cap: float | None = None

    def after(self, factor: float, divisor: float) -> LogitScale:
        """This scale, where the head's input was scaled already."""
        return replace(self, factor=self.factor * factor, divisor=self.divisor * divisor)

    def __call__(self, products: Tensor) -> Tensor:
        """Logits of the head's products, each by itself."""
        scaled = products if self.factor == 1 else products * self.factor
        scaled = scaled if self.divisor == 1 else scaled / self.divisor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def ratio_of(other: Tensor, logits: Tensor, config: Any) -> tuple[float, float] | None:
    """Numbers for which `other = one · factor / divisor`, the configuration's where it has them; None without any."""
    if logits.shape != other.shape:
        return None
    x, y = logits.double().flatten().cpu(), other.double().flatten().cpu()
    if not (square := x.square().sum()) > 0:
        return None
    ratio = ((x * y).sum() / square).item()
    snap = SNAP.get(logits.dtype, SNAP_IN_HALF_PRECISION)
    if (y - ratio * x).abs().max() > max(snap, 1e-5) * y.abs().max() * 2:
        return None
    nearest = min(_ratios(config), key=lambda pair: abs(pair[0] / pair[1] - ratio))
    return nearest if abs(nearest[0] / nearest[1] - ratio) <= snap * abs(ratio) else (ratio, 1.0)


def fit_scale(products: Tensor, logits: Tensor, config: Any) -> LogitScale:
    """The scale that leads from a head's products to the logits; none where nothing known here does."""
    named = [float(value) for name in CAPS if (value := getattr(config, name, None))]
    others = [value for value in _numbers(config) if value > 1 and value not in named]
    caps: list[float | None] = [*named, None, *others]
    for cap in caps:
        reached = logits.double() if cap is None else torch.atanh(logits.double() / cap) * cap
        if reached.isfinite().all() and (ratio := ratio_of(reached, products, config)) is not None:
            return LogitScale(*ratio, cap)
    return LogitScale()


def _numbers(config: Any) -> list[float]:
    values = config.to_dict().values()
    return [float(value) for value in values if type(value) in (int, float) and 0 < abs(value) < 1e9]


def _ratios(config: Any) -> Iterator[tuple[float, float]]:
    """What factor and divisor may be: one, a number of the configuration, its inverse, or one over another."""
    numbers = list(dict.fromkeys(_numbers(config)))
    yield 1.0, 1.0
    yield from ((number, 1.0) for number in numbers)
    yield from ((1.0, number) for number in numbers)
    yield from ((divisor, other) for divisor in numbers for other in numbers)
