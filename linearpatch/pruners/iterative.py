"""Layers removed one at a time: choose one, repair the interfaces, choose the next in the repaired model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from linearpatch.calibration.edited_workspace import EditedWorkspace
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import components
from linearpatch.results.scores import LayerScores, SearchStep


@dataclass(frozen=True)
class RankingPruner(Pruner):
    """Base of the pruners that score layers or windows of whatever model they are shown.

    Attributes:
        iterative: Remove one layer at a time: choose it, repair the interfaces, choose the next in the repaired model
            (the order of Prune&Comp, with any patch).
    """

    iterative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterative and self.unit != LAYER:
            raise ConfigError(
                f"pruner.iterative=true chooses whole layers, and pruner.unit is {self.unit}. Use pruner=sleb or "
                "pruner=patch_aware pruner.search=greedy, which choose one sublayer after the other, or "
                "pruner.iterative=false."
            )

    @property
    def chooser(self) -> Pruner:
        """Itself, or itself one layer at a time."""
        return Iterative(wraps=self) if self.iterative else self


@dataclass(frozen=True)
class Iterative(Pruner):
    """Another pruner, one layer at a time.

    Attributes:
        wraps: Chooses each layer, of a model in which the interfaces so far are repaired by the run's patch.
    """

    wraps: RankingPruner = field(kw_only=True)

    @property
    def sees_patches(self) -> bool:
        """From the second layer on."""
        return True

    def statistics(self, n: int) -> Sequence[Statistic]:
        """Those for the first layer; the others are chosen in models that don't exist yet."""
        return self.wraps.statistics(1)

    def candidates(self, num_layers: int) -> range:
        """Those of the other."""
        return self.wraps.candidates(num_layers)

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose, repair, and choose again."""
        removed: list[int] = []
        steps: list[SearchStep] = []
        criterion = ""
        while len(removed) < n:
            current = EditedWorkspace(workspace, removed) if removed else workspace
            left = [layer for layer in range(workspace.num_layers) if layer not in removed]
            edit = self.wraps.select(current, 1)
            removed.append(left[edit.removed_layers[0]])
            scores = edit.scores or LayerScores()
            criterion = scores.criterion
            losses = {str(left[int(layer)]): loss for layer, loss in scores.by_step[0].items()}
            bounds = scores.steps[0].bounds if scores.steps else None
            steps.append(SearchStep(removed[-1], losses, [left[int(layer)] for layer in bounds or ()]))
        return Edit.of_layers(removed, scores=LayerScores(criterion, "layer", steps=steps))


def rankings() -> dict[str, type[RankingPruner]]:
    """Pruners that score layers or windows of the dense model, by name: rivals of a search, and where one starts."""
    return {name: cls for name, cls in components("pruner").items() if issubclass(cls, RankingPruner)}
