"""Layers named by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER, SUBLAYER, Unit, as_units, check_removed
from linearpatch.pruners.pruner import UNITS, Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores
from linearpatch.text import counted


@component("pruner", "explicit", title="Given layers")
@dataclass(frozen=True)
class Explicit(Pruner):
    """The first `n` of a list of layers in order of removal.

    Attributes:
        layers: Dense indices; a longer list than needed serves as a ranking. With unit=attention or unit=mlp, the
            layers that lose that.
        sublayers: With unit=sublayer, in place of layers: names such as `3.attention` and `5.mlp`.
    """

    units: ClassVar[Sequence[str]] = UNITS

    layers: list[int] = field(default_factory=list)
    sublayers: list[str] = field(default_factory=list, metadata={"identity": "changed"})

    def __post_init__(self) -> None:
        super().__post_init__()
        as_units(self.sublayers)
        if self.sublayers and self.unit != SUBLAYER:
            raise ConfigError(
                f"pruner.sublayers={list(self.sublayers)} isn't read with pruner.unit={self.unit}. Set "
                "pruner.unit=sublayer, or name layers in pruner.layers."
            )

    @property
    def listed(self) -> list[Unit]:
        """All that is named."""
        return as_units(self.sublayers) if self.unit == SUBLAYER else [Unit(layer, self.unit) for layer in self.layers]

    def check(self, num_layers: int, n: int) -> None:
        """Reject a list that is too short or names layers that don't exist."""
        super().check(num_layers, n)
        listed, allowed = self.listed, self.candidates(num_layers)
        bad = [unit for unit in listed if unit.layer not in allowed or unit.part not in self.parts]
        if bad or len(set(listed)) < len(listed) or len(listed) < n:
            named = [unit.plain if self.unit == SUBLAYER else unit.layer for unit in bad]
            what = "sublayer" if self.unit == SUBLAYER else "layer"
            problem = f"holds {named}" if bad else f"names {counted(len(set(listed)), what)}"
            number = "num_pruned_layers" if self.unit == LAYER else "num_pruned"
            raise ConfigError(
                f"pruner.{what}s={list(self.sublayers if self.unit == SUBLAYER else self.layers)} {problem}, with "
                f"{number}={n}. Allowed: at least {n} different {what}s from {allowed.start} to {allowed.stop - 1}, "
                f"such as pruner.{what}s=[{self._example(num_layers, n)}]."
            )
        check_removed(listed[:n], num_layers)

    def _example(self, num_layers: int, n: int) -> str:
        units = self.left(num_layers)
        middle = max(0, (len(units) - n) // 2)
        chosen = units[middle : middle + n]
        return ",".join(str(unit if self.unit == SUBLAYER else unit.layer) for unit in chosen)

    def known_choice(self, num_layers: int, n: int) -> Sequence[Unit]:
        """The list as it is."""
        return self.listed[:n]

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Take the list as it is."""
        return Edit.without(self.listed[:n], scores=LayerScores("named by the user", self.unit, values=[]))
