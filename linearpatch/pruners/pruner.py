"""What every pruner is: settings, what it wants to know, and a choice of layers.

A new pruner is one file here, one YAML in `conf/pruner/` and one test; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from linearpatch.calibration.edited_workspace import EditedWorkspace
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
        iterative: Remove one layer at a time: choose it, patch the gaps, choose the next in the patched model
            (the order of Prune&Comp, with any patch).
    """

    version: ClassVar[int] = 1
    needs_held_out: ClassVar[bool] = False  # whether it chooses by a loss on tokens that nothing was fitted on

    protect_first: int = 0
    protect_last: int = 0
    iterative: bool = False

    def __post_init__(self) -> None:
        require_range("pruner.protect_first", self.protect_first, low=0)
        require_range("pruner.protect_last", self.protect_last, low=0)

    @property
    def sees_patches(self) -> bool:
        """Whether the choice depends on the patch."""
        return self.needs_held_out or self.iterative

    @property
    def sees_whole_patches(self) -> bool:
        """Whether it measures the patch as it will be fitted, and not only what stands in for it (`Patch.draft`)."""
        return False

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Statistics that `select` will ask for; they share one pass with those of the patch."""
        return ()

    def rough_passes(self, num_layers: int, n: int) -> float:
        """What `select` costs beyond statistics, in forward passes over the calibration tokens, roughly."""
        return 0

    def rough_held_out_passes(self, num_layers: int, n: int) -> float:
        """The same over the tokens that are held out."""
        return 0

    def dense_statistics(self, n: int) -> Sequence[Statistic]:
        """Statistics of the dense model that `choose` will ask for."""
        return self.statistics(1 if self.iterative else n)

    def rough_cost(self, num_layers: int, n: int) -> float:
        """`rough_passes` of `choose`: where layers go one by one, each costs a fit, a pass and a choice."""
        return n * (2 + self.rough_passes(num_layers, 1)) if self.iterative else self.rough_passes(num_layers, n)

    def choose(self, workspace: Workspace, n: int) -> Selection:
        """Choose `n` layers of the workspace's model, at once or one by one."""
        return self._iterate(workspace, n) if self.iterative else self.select(workspace, n)

    def _iterate(self, workspace: Workspace, n: int) -> Selection:
        """Choose a layer, patch the gaps that there are now, and choose the next in what that gives."""
        removed: list[int] = []
        steps: list[dict[str, Any]] = []
        criterion = ""
        while len(removed) < n:
            current = EditedWorkspace(workspace, removed) if removed else workspace
            left = [layer for layer in range(workspace.num_layers) if layer not in removed]
            selection = self.select(current, 1)
            removed.append(left[selection.removed[0]])
            criterion = selection.scores["criterion"]
            losses, bounds = _layer_scores(selection.scores)
            steps.append(
                {
                    "removed": removed[-1],
                    "losses": {str(left[layer]): loss for layer, loss in losses.items()},
                    "bounds": [left[layer] for layer in bounds],
                }
            )
        return Selection(tuple(removed), {"criterion": criterion, "unit": "layer", "steps": steps})

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
                f"No layer of the model's {num_layers} can be removed with "
                f"pruner.protect_first={self.protect_first} and pruner.protect_last={self.protect_last}. Lower "
                "pruner.protect_first or pruner.protect_last."
            )
        if not 1 <= n <= possible:
            raise ConfigError(
                f"num_pruned_layers is {n}, but {possible} of the model's {num_layers} layers can be removed "
                f"(pruner.protect_first={self.protect_first}, pruner.protect_last={self.protect_last}, one must "
                "stay). "
                f"Allowed: 1 to {possible}."
            )

    def known_choice(self, num_layers: int, n: int) -> Sequence[int] | None:
        """The layers that it will choose, where that is known before anything is computed."""
        return None

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


def _layer_scores(scores: Mapping[str, Any]) -> tuple[dict[int, float], list[int]]:
    """Score of each layer that has one, and those that are lower bounds, where one layer was chosen."""
    if "steps" in scores:
        (step,) = scores["steps"]
        return {int(layer): loss for layer, loss in step["losses"].items()}, step["bounds"]
    return {layer: value for layer, value in enumerate(scores["values"]) if value is not None}, []
