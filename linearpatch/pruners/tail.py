"""The simplest baseline: drop the deepest layers but keep the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit
from linearpatch.pruners.iterative import RankingPruner
from linearpatch.registry import component


@component("pruner", "tail", title="Tail")
@dataclass(frozen=True)
class Tail(RankingPruner):
    """The last `n` layers before the final one, deepest first.

    The simple heuristic of "The unreasonable ineffectiveness of the deeper layers", section 4.4.
    """

    protect_last: int = 1

    def known_choice(self, num_layers: int, n: int) -> Sequence[int]:
        """From the end, the last ones protected."""
        return sorted(self.candidates(num_layers))[-n:]

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Take layers from the end."""
        depth = [float(workspace.num_layers - layer) for layer in range(workspace.num_layers)]
        return self.lowest("distance from the end", depth, n)
