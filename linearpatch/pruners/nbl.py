"""NBL: the attentions that are most nearly linear in what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from linearpatch.calibration.canonical import CanonicalBound
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.models.sublayers import ATTENTION, MLP
from linearpatch.models.units import SUBLAYER
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component


@component("pruner", "nbl", title="NBL")
@dataclass(frozen=True)
class NBL(Pruner):
    """Sublayers with the lowest bound on the error of the best linear map in their place.

    NBL (Erdogan et al. 2025), section 3: the bound follows from the canonical correlations of what a sublayer reads and
    of the stream past it. Their operator is `patch=nbl`.
    """

    units: ClassVar[Sequence[str]] = (ATTENTION, MLP, SUBLAYER)

    unit: str = field(default=ATTENTION, metadata={"identity": "changed"})

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank sublayers by their bounds."""
        units = self.all_units(workspace.num_layers)
        statistics = [CanonicalBound(unit.start, unit.end) for unit in units]
        results = workspace.collect(*statistics, description="canonical correlations")
        return self.lowest("NBL's bound", [result["bound"].item() for result in results], n)
