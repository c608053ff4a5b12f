"""How far each sublayer turns the stream, from the pass that other statistics share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor

from linearpatch.calibration.statistics import (
    Accumulator,
    LastTokenAngle,
    LayerInput,
    Statistic,
    WindowCosine,
    on_cpu,
)


@dataclass(frozen=True)
class SublayerStatistic(Statistic):
    """Base of the means of a comparison of the streams before and after each sublayer, attention and MLP in turn."""

    def between(self, num_layers: int) -> Collection[int]:
        """Those of all layers."""
        return range(num_layers)


@dataclass(frozen=True)
class SublayerCosine(SublayerStatistic):
    """Mean cosine between each token's stream before and after each sublayer has added to it.

    Result `cosine`: `[2 L]`, entries 2 l and 2 l + 1 for the attention and the MLP of layer l.
    """

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of cosines."""
        return _SublayerMean("cosine", num_layers, WindowCosine.compare)


@dataclass(frozen=True)
class SublayerAngle(SublayerStatistic):
    """Mean angle, as a fraction of π, between the last token's stream before and after each sublayer.

    Result `angle`: `[2 L]`, as of `SublayerCosine`.
    """

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums of angles."""
        return _SublayerMean("angle", num_layers, LastTokenAngle.compare)


class _SublayerMean:
    def __init__(
        self, name: str, num_layers: int, compare: Callable[[LayerInput, LayerInput], tuple[Tensor, int]]
    ) -> None:
        self.name = name
        self.compare = compare
        self.before: LayerInput | None = None
        self.sums: list[Tensor | None] = [None] * (2 * num_layers)
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        at = int(2 * stream.index) - 1
        if at >= 0:
            assert self.before is not None
            total, count = self.compare(self.before, stream)
            previous = self.sums[at]
            self.sums[at] = total if previous is None else previous + total
            self.count += count if at == 0 else 0
        self.before = stream if at < len(self.sums) - 1 else None

    def result(self) -> dict[str, Tensor]:
        return {self.name: on_cpu(self.sums) / self.count}
