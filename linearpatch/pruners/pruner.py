"""What every pruner is: settings, what it wants to know, and a choice of layers.

A new pruner is one file here, one YAML in `conf/pruner/` and one test; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from linearpatch.calibration.questions import QuestionTexts
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.sublayers import ATTENTION, MLP, check_separable
from linearpatch.models.units import LAYER, SUBLAYER, SUBLAYERS, Unit
from linearpatch.registry import components, name_of
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import PruningSection
from linearpatch.text import counted

LAYER_UNITS = (LAYER,)
UNITS = (LAYER, ATTENTION, MLP, SUBLAYER)
COUNTED = {LAYER: "layer", ATTENTION: "attention sublayer", MLP: "MLP sublayer", SUBLAYER: "sublayer"}


@dataclass(frozen=True)
class Pruner(ABC):
    """Chooses the layers to remove.

    Attributes:
        protect_first: So many layers at the start are never removed, nor parts of them.
        protect_last: So many layers at the end are never removed, nor parts of them.
        unit: What is removed: `layer`: whole layers, as many as `num_pruned_layers` says. `attention` or `mlp`: that
            sublayer with its norms, in `num_pruned` layers. `sublayer`: `num_pruned` of both kinds.
    """

    version: ClassVar[int] = 1
    units: ClassVar[Sequence[str]] = LAYER_UNITS  # that it can choose
    removes_layers: ClassVar[bool] = True  # and not parts of them, which leaves no interface for a patch

    protect_first: int = 0
    protect_last: int = 0
    unit: str = field(default=LAYER, metadata={"identity": "changed"})

    def __post_init__(self) -> None:
        require_choice("pruner.unit", self.unit, UNITS)
        if self.unit not in self.units:
            raise ConfigError(
                f"pruner.unit={self.unit} has no meaning for pruner={name_of(self)}, which chooses whole layers. "
                f"Allowed: {', '.join(self.units)}. Pruners that choose sublayers: {', '.join(of_sublayers())}."
            )
        require_range("pruner.protect_first", self.protect_first, low=0)
        require_range("pruner.protect_last", self.protect_last, low=0)

    @property
    def chooser(self) -> Pruner:
        """What chooses, as the settings say: the pruner itself, or a wrapper around it."""
        return self

    @property
    def needs_held_out(self) -> bool:
        """Whether it chooses by a loss on tokens that nothing was fitted on."""
        return False

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

    def prepare(self, workspace: Workspace, sizes: Sequence[int]) -> None:  # noqa: B027  # most share no more
        """Do what `select` of several sizes shares beside statistics; each finds it in the cache."""

    @abstractmethod
    def select(self, workspace: Workspace, n: int) -> Edit:
        """Choose `n` layers of the workspace's model.

        Returns:
            The layers in the order of removal, with their scores: a smaller pruning takes a prefix, unless the layers
            form a window.
        """

    def questions(self, datasets_dir: Path | None) -> QuestionTexts | None:
        """Questions by which it judges models, read before a model is loaded; None where it asks none.

        Args:
            datasets_dir: Local copies of data sets.
        """
        return None

    def candidates(self, num_layers: int) -> range:
        """Layers that may be removed, or lose a sublayer."""
        return range(self.protect_first, num_layers - self.protect_last)

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of units among which it chooses."""
        return SUBLAYERS if self.unit == SUBLAYER else (self.unit,)

    def all_units(self, num_layers: int) -> list[Unit]:
        """All units of these kinds, in the order in which scores are listed."""
        return [Unit(layer, part) for layer in range(num_layers) for part in self.parts]

    def left(self, num_layers: int, removed: Collection[Unit] = ()) -> list[Unit]:
        """Units that may be removed beside those that are: not the last attention."""
        candidates = self.candidates(num_layers)
        units = [unit for unit in self.all_units(num_layers) if unit.layer in candidates and unit not in removed]
        without_attention = {unit.layer for unit in removed if unit.part != MLP}
        return [unit for unit in units if unit.part == MLP or len(without_attention) < num_layers - 1]

    def of_unit(self, values: Tensor) -> list[float]:
        """Scores of its units, of those of all sublayers, `[2 L]`, attention and MLP in turn."""
        step = {ATTENTION: slice(0, None, 2), MLP: slice(1, None, 2), SUBLAYER: slice(None)}
        scores: list[float] = values[step[self.unit]].tolist()
        return scores

    def choose(self, workspace: Workspace, n: int) -> Edit:
        """Select as the settings say (`chooser`), and check that as many units were chosen as were asked for.

        Raises:
            ConfigError: the pruner chose another number.
        """
        edit = self.chooser.select(workspace, n)
        if self.removes_layers and len(edit.removed) != n:
            raise ConfigError(
                f"pruner={name_of(self)} chose {counted(len(edit.removed), COUNTED[self.unit])} "
                f"({', '.join(map(str, edit.removed))}), and {n} were to be removed. Ask for as many as it can choose, "
                "or change its settings."
            )
        return edit

    def check(self, num_layers: int, n: int) -> None:
        """Reject a number of layers that can't be removed, before anything is computed.

        Raises:
            ConfigError: there are fewer candidates, or no layer would be left.
        """
        if self.unit != LAYER:
            self._check_sublayers(num_layers, n)
            return
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

    def number(self, num_layers: int | None, num_units: int | None) -> int | None:
        """How many units go, of the two settings that say so.

        Args:
            num_layers: `num_pruned_layers`, which counts layers.
            num_units: `num_pruned`, which counts sublayers; None: not set.

        Raises:
            ConfigError: the one that is set counts other units.
        """
        if self.unit == LAYER and num_units is not None:
            raise ConfigError(
                f"num_pruned={num_units} counts sublayers, and pruner.unit is layer. Set "
                f"num_pruned_layers={num_units}, or pruner.unit to one of {', '.join(UNITS[1:])}."
            )
        if self.unit != LAYER and num_units is None:
            raise ConfigError(
                f"pruner.unit={self.unit} needs the number of sublayers to remove: set num_pruned, such as "
                "num_pruned=10. num_pruned_layers counts whole layers."
            )
        if num_units is None:
            return num_layers
        require_range("num_pruned", num_units, low=1)
        return num_units

    def _check_sublayers(self, num_layers: int, n: int) -> None:
        layers = len(self.candidates(num_layers))
        possible = {ATTENTION: min(layers, num_layers - 1), MLP: layers}
        possible[SUBLAYER] = possible[ATTENTION] + possible[MLP]
        most = max(0, possible[self.unit])
        if not 1 <= n <= most:
            raise ConfigError(
                f"num_pruned is {n}, but {counted(most, COUNTED[self.unit])} of the model's {num_layers} layers can be "
                f"removed (pruner.protect_first={self.protect_first}, pruner.protect_last={self.protect_last}; one "
                f"attention must stay). Allowed: {f'1 to {most}' if most else 'none; protect fewer layers'}."
            )

    def check_rest(self, patch: str, save_format: str) -> None:
        """Reject what needs interfaces, where it removes parts of sublayers and leaves none.

        Args:
            patch: Name of the run's patch.
            save_format: Of its checkpoint.

        Raises:
            ConfigError: names the patch, or the format.
        """
        if self.removes_layers:
            return
        if patch != "none":
            raise ConfigError(
                f"pruner={name_of(self)} removes parts of layers, not layers: there is no interface for patch={patch} "
                "to bridge, nor for a distillation. Use patch=none distill=none, or a pruner that removes layers."
            )
        if save_format not in ("auto", "custom"):
            raise ConfigError(
                f"save_format={save_format} can't hold the model of pruner={name_of(self)}, whose layers have widths "
                "of their own. Use save_format=custom."
            )

    def check_family(self, decoder: Decoder) -> None:
        """Reject a model that lacks what it chooses among, before anything is computed.

        Raises:
            ModelError: the family's sublayers can't be removed one without the other.
        """
        for unit in self.left(decoder.num_layers) if self.unit != LAYER else ():
            check_separable(decoder, unit.layer, unit.part)

    def known_choice(self, num_layers: int, n: int) -> Sequence[int | Unit] | None:
        """What it will choose, where that is known before anything is computed."""
        return None

    def lowest(self, criterion: str, scores: Sequence[float], n: int) -> Edit:
        """The `n` candidates with the lowest scores, lowest first; of equals, the earlier one.

        Args:
            criterion: What was measured.
            scores: One for each of `all_units`.
            n: How many go.
        """
        num_layers = len(scores) // len(self.parts)
        by_unit = dict(zip(self.all_units(num_layers), scores, strict=True))
        removed: list[Unit] = []
        for _ in range(n):
            removed.append(min(self.left(num_layers, removed), key=lambda unit: (by_unit[unit], unit)))
        return Edit.without(removed, scores=LayerScores(criterion, self.unit, list(scores)))

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
            removed=[str(unit) for unit in edit.removed] if self.unit != LAYER else [],
        )


def of_sublayers() -> list[str]:
    """Names of the pruners that can choose sublayers."""
    pruners: Mapping[str, Any] = components("pruner")
    return sorted(name for name, cls in pruners.items() if SUBLAYER in cls.units)
