"""ShortGPT: the layers with the least block influence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from linearpatch.calibration.statistics import Statistic, WindowCosine
from linearpatch.calibration.sublayer_statistics import SublayerCosine
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER, SUBLAYER
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "shortgpt", title="ShortGPT")
@dataclass(frozen=True)
class ShortGPT(RankingPruner):
    """Layers with the lowest block influence, 1 − E cos(X_i, X_{i+1}), anywhere in the model.

    ShortGPT, section 3.1, eq. 1. Scored once, on the dense model; the last layer's output is taken before
    the final norm. Of sublayers, the cosine is that of the stream before and after one has added to it: the criterion
    of LLM-Drop (He et al. 2024, section 3.2).

    Attributes:
        of_layers: With unit=attention or unit=mlp: rank by the influence of whole layers, of which that part goes.
    """

    units: ClassVar[Sequence[str]] = UNITS

    of_layers: bool = field(default=False, metadata={"identity": "changed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of_layers and self.unit == SUBLAYER:
            raise ConfigError(
                "pruner.of_layers=true ranks whole layers, which says nothing of which sublayer goes first. Use "
                "pruner.unit=attention or pruner.unit=mlp, or pruner.of_layers=false."
            )

    @property
    def ranks_layers(self) -> bool:
        """Whether the influence of whole layers decides."""
        return self.unit == LAYER or self.of_layers

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Cosines across single layers, or sublayers."""
        return (WindowCosine(1),) if self.ranks_layers else (SublayerCosine(),)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose the layers that turn the stream least."""
        if not self.ranks_layers:
            cosine = workspace.statistic(SublayerCosine())["cosine"]
            return self.lowest("block influence", self.of_unit(1 - cosine), n)
        cosine = workspace.statistic(WindowCosine(1))["cosine"]
        return self.lowest("block influence", (1 - cosine).tolist(), n)
