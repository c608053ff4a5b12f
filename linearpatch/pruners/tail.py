"""The simplest baseline: drop the deepest layers but keep the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.models.units import Unit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.pruners.pruner import UNITS
from linearpatch.registry import component


@component("pruner", "tail", title="Tail")
@dataclass(frozen=True)
class Tail(RankingPruner):
    """The last `n` layers before the final one, deepest first.

    The simple heuristic of "The unreasonable ineffectiveness of the deeper layers", section 4.4.
    """

    units: ClassVar[Sequence[str]] = UNITS

    protect_last: int = 1

    def known_choice(self, num_layers: int, n: int) -> Sequence[Unit]:
        """From the end, the last ones protected."""
        return self.left(num_layers)[-n:]

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Take layers from the end."""
        number = len(self.all_units(workspace.num_layers))
        depth = [float(number - at) for at in range(number)]
        return self.lowest("distance from the end", depth, n)
