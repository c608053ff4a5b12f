"""Statistics that listen to the same pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from linearpatch.calibration.finite import finite
from linearpatch.calibration.statistics import LayerInput, Statistic
from linearpatch.models.units import Unit


class Listeners:
    """The accumulators of some statistics, and what they need of a pass together.

    Args:
        statistics: What is wanted.
        num_layers: Of the model.

    Attributes:
        deepest: The last stream that any of them needs.
        mlp_layers: Layers whose MLP output they need …
        projections: … sublayers of which they need what the output projection reads …
        expert_layers: … layers of which they need how many tokens each expert gets …
        between: … and layers of which they need the stream between attention and MLP.
    """

    def __init__(self, statistics: Sequence[Statistic], num_layers: int) -> None:
        self.statistics = statistics
        self.deepest = max(statistic.deepest(num_layers) for statistic in statistics)
        self.mlp_layers = {layer for statistic in statistics for layer in statistic.mlp_layers()}
        self.projections: set[Unit] = {unit for statistic in statistics for unit in statistic.projections()}
        self.expert_layers = {layer for statistic in statistics for layer in statistic.expert_layers()}
        self._asked = [frozenset(statistic.between(num_layers)) for statistic in statistics]
        self.between = frozenset[int]().union(*self._asked)
        self._accumulators = [statistic.start(num_layers) for statistic in statistics]

    @property
    def need_streams_alone(self) -> bool:
        """Whether what layers read is enough for all of them."""
        return not (self.mlp_layers or self.projections or self.expert_layers or self.between)

    def observe(self, stream: LayerInput) -> None:
        """Show a stream to those that want it: all, or of one between attention and MLP those that asked for it."""
        layer = int(stream.index)
        for accumulator, layers in zip(self._accumulators, self._asked, strict=True):
            if layer == stream.index or layer in layers:
                accumulator.observe(stream)

    def results(self) -> list[tuple[Statistic, dict[str, Tensor]]]:
        """What each comes to.

        Raises:
            NumericsError: one isn't finite.
        """
        results = []
        for statistic, accumulator in zip(self.statistics, self._accumulators, strict=True):
            tensors = accumulator.result()
            for name, tensor in tensors.items():
                finite(tensor, f"{type(statistic).__name__} ({name})", "entry")
            results.append((statistic, tensors))
        return results
