"""The mean of the stream at each place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor

from linearpatch.calibration.statistics import Accumulator, LayerInput, Statistic, on_cpu


@dataclass(frozen=True)
class StreamMean(Statistic):
    """Mean of what each layer reads over all tokens.

    Result `mean`: `[L + 1, D]`; with `sublayers`, of what each sublayer reads, `[2 L + 1, D]`: row 2 i for layer i,
    row 2 i + 1 for its MLP.
    """

    sublayers: bool = False

    def between(self, num_layers: int) -> Collection[int]:
        """All layers, or none."""
        return range(num_layers) if self.sublayers else ()

    def of_sublayers(self) -> Statistic:
        """With what the MLPs read."""
        return replace(self, sublayers=True)

    def start(self, num_layers: int) -> Accumulator:
        """Keep sums."""
        return _Sums(2 if self.sublayers else 1, num_layers)


class _Sums:
    def __init__(self, rows: int, num_layers: int) -> None:
        self.rows = rows  # for each layer
        self.sums: list[Tensor | None] = [None] * (rows * num_layers + 1)
        self.count = 0

    def observe(self, stream: LayerInput) -> None:
        total = stream.tokens.sum(dim=0).double()
        row = int(self.rows * stream.index)
        previous = self.sums[row]
        self.sums[row] = total if previous is None else previous + total
        self.count += len(stream.tokens) if row == 0 else 0

    def result(self) -> dict[str, Tensor]:
        return {"mean": on_cpu(self.sums) / self.count}
