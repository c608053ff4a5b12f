"""What every pruner is: settings, what it wants to know, and a choice of layers.

A new pruner is one file here, one YAML in `conf/pruner/` and one test; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.registry import name_of
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import PruningSection


@dataclass(frozen=True)
class Pruner(ABC):
    """Chooses the layers to remove.

    Attributes:
        protect_first: So many layers at the start are never removed.
        protect_last: So many layers at the end are never removed.
    """

    version: ClassVar[int] = 1
    removes_layers: ClassVar[bool] = True  # and not parts of them, which leaves no interface for a patch
    needs_held_out: ClassVar[bool] = False  # whether it chooses by a loss on tokens that nothing was fitted on

    protect_first: int = 0
    protect_last: int = 0

    def __post_init__(self) -> None:
        require_range("pruner.protect_first", self.protect_first, low=0)
        require_range("pruner.protect_last", self.protect_last, low=0)

    @property
    def chooser(self) -> Pruner:
        """What chooses, as the settings say: the pruner itself, or a wrapper around it."""
        return self

    @property
    def sees_patches(self) -> bool:
        """Whether the choice depends on the patch."""
        return self.needs_held_out

    @property
    def sees_whole_patches(self) -> bool:
        """Whether it measures the patch as it will be fitted, and not only what stands in for it (`Patch.draft`)."""
        return False

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Statistics that `select` will ask for; they share one pass with those of the patch."""
        return ()

    @abstractmethod
    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose `n` layers of the workspace's model.

        Returns:
            The layers in the order of removal, with their scores: a smaller pruning takes a prefix, unless the layers
            form a window.
        """

    def candidates(self, num_layers: int) -> range:
        """Layers that may be removed."""
        return range(self.protect_first, num_layers - self.protect_last)

    def check(self, num_layers: int, n: int) -> None:
        """Reject a number of layers that can't be removed, before anything is computed.

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

    def lowest(self, criterion: str, scores: Sequence[float], n: int) -> Edit:
        """The `n` candidates with the lowest scores, lowest first; of equals, the earlier layer."""
        ranked = sorted(self.candidates(len(scores)), key=lambda layer: (scores[layer], layer))
        return Edit.of_layers(ranked[:n], scores=LayerScores(criterion, "layer", list(scores)))

    def lowest_window(self, criterion: str, scores: Sequence[float], n: int) -> Edit:
        """The window of `n` layers with the lowest score of those that fit between the protected layers.

        Args:
            criterion: What was measured.
            scores: One for each window, by its first layer: `L - n + 1`.
            n: Layers in a window.
        """
        allowed = self.candidates(len(scores) + n - 1)
        start = min(range(allowed.start, allowed.stop - n + 1), key=lambda first: (scores[first], first))
        return Edit.of_layers(range(start, start + n), scores=LayerScores(criterion, "window", list(scores)))

    def section(self, dense: Decoder, edit: Edit) -> PruningSection:
        """What was chosen, for the record."""
        removed = edit.num_parameters_removed(dense)
        return PruningSection(
            method=name_of(self),
            removed_layers=list(edit.removed_layers),
            interfaces=[(interface.start, interface.end) for interface in edit.interfaces],
            num_parameters_removed=removed,
            ratio=removed / dense.num_parameters,
            sees_patches=self.sees_patches,
            scores=edit.scores or {},
        )
