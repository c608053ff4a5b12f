"""What every pruner is: settings, what it wants to know, and a choice of layers.

A new pruner is one file here, one YAML in `conf/pruner/` and one test; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_range


@dataclass(frozen=True)
class Selection:
    """The layers to remove, and why.

    Attributes:
        removed: Dense indices in the order in which they go; a smaller pruning takes a prefix, unless the
            layers form a window.
        scores: `criterion` (what was measured), `unit` (`layer` or `window`, named by its first layer) and
            `values`, or for a search `steps`. Plain JSON values.
    """

    removed: tuple[int, ...]
    scores: Mapping[str, Any]


@dataclass(frozen=True)
class Pruner(ABC):
    """Chooses the layers that go.

    Attributes:
        protect_first: So many layers at the start are never removed.
        protect_last: So many layers at the end are never removed.
    """

    version: ClassVar[int] = 1

    protect_first: int = 0
    protect_last: int = 0

    def __post_init__(self) -> None:
        require_range("pruner.protect_first", self.protect_first, low=0)
        require_range("pruner.protect_last", self.protect_last, low=0)

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Statistics that `select` will ask for; they share one pass with those of the patch."""
        return ()

    def rough_passes(self, num_layers: int, n: int) -> float:
        """What `select` costs beyond statistics, in forward passes over the calibration tokens, roughly."""
        return 0

    @abstractmethod
    def select(self, workspace: Workspace, n: int) -> Selection:
        """Choose `n` layers of the workspace's model."""

    def candidates(self, num_layers: int) -> range:
        """Layers that may be removed."""
        return range(self.protect_first, num_layers - self.protect_last)

    def check(self, num_layers: int, n: int) -> None:
        """Refuse a number of layers that can't be removed, before anything is computed.

        Raises:
            ConfigError: there are fewer candidates, or no layer would be left.
        """
        possible = min(len(self.candidates(num_layers)), num_layers - 1)
        if possible < 1:
            raise ConfigError(
                f"No layer of the model's {num_layers} can be removed with protect_first={self.protect_first} and "
                f"protect_last={self.protect_last}. Lower pruner.protect_first or pruner.protect_last."
            )
        if not 1 <= n <= possible:
            raise ConfigError(
                f"num_pruned_layers is {n}, but {possible} of the model's {num_layers} layers can be removed "
                f"(protect_first={self.protect_first}, protect_last={self.protect_last}, one must stay). "
                f"Allowed: 1 to {possible}."
            )

    def lowest(self, criterion: str, scores: Sequence[float], n: int) -> Selection:
        """The `n` candidates with the lowest scores, lowest first; of equals, the earlier layer."""
        ranked = sorted(self.candidates(len(scores)), key=lambda layer: (scores[layer], layer))
        return Selection(tuple(ranked[:n]), {"criterion": criterion, "unit": "layer", "values": list(scores)})

    def lowest_window(self, criterion: str, scores: Sequence[float], n: int) -> Selection:
        """The window of `n` layers with the lowest score of those that fit between the protected layers.

        Args:
            criterion: What was measured.
            scores: One for each window, by its first layer: `L - n + 1`.
            n: Layers in a window.
        """
        allowed = self.candidates(len(scores) + n - 1)
        start = min(range(allowed.start, allowed.stop - n + 1), key=lambda first: (scores[first], first))
        values = {"criterion": criterion, "unit": "window", "values": list(scores)}
        return Selection(tuple(range(start, start + n)), values)
