"""Layers named by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores
from linearpatch.text import counted


@component("pruner", "explicit", title="Given layers")
@dataclass(frozen=True)
class Explicit(Pruner):
    """The first `n` of a list of layers in order of removal.

    Attributes:
        layers: Dense indices; a longer list than needed serves as a ranking.
    """

    layers: list[int] = field(default_factory=list)

    def check(self, num_layers: int, n: int) -> None:
        """Reject a list that is too short or names layers that don't exist."""
        super().check(num_layers, n)
        bad = [layer for layer in self.layers if layer not in self.candidates(num_layers)]
        if bad or len(set(self.layers)) < len(self.layers) or len(self.layers) < n:
            problem = f"holds {bad}" if bad else f"names {counted(len(set(self.layers)), 'layer')}"
            allowed = self.candidates(num_layers)
            middle = max(0, (len(allowed) - n) // 2)
            example = ",".join(map(str, allowed[middle : middle + n]))
            raise ConfigError(
                f"pruner.layers={list(self.layers)} {problem}, with num_pruned_layers={n}. Allowed: at least {n} "
                f"different layers from {allowed.start} to {allowed.stop - 1}, such as pruner.layers=[{example}]."
            )

    def known_choice(self, num_layers: int, n: int) -> Sequence[int]:
        """The list as it is."""
        return self.layers[:n]

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Take the list as it is."""
        return Edit.of_layers(self.layers[:n], scores=LayerScores("named by the user", values=[]))
