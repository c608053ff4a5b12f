"""How layers were chosen: the score of each, or the steps of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, with_config

from linearpatch.results.fields import CHECKED, MAX_LAYERS, Layer, Name, Number

LayerName = Annotated[str, Field(pattern=r"^\d{1,4}$")]
SublayerName = Annotated[str, Field(pattern=r"^\d{1,4}\.(attention|mlp)$")]
UnitName = Annotated[str, Field(pattern=r"^\d{1,4}(\.(attention|mlp))?$")]
AnyUnit = Layer | SublayerName


@with_config(CHECKED)
@dataclass(frozen=True)
class SearchStep:
    """A step of a search.

    Attributes:
        removed: The layer that was removed, or the sublayer by its name; of a search over sets, the best set.
        losses: Loss without each layer or sublayer that was tried.
        bounds: Layers of which the loss is a lower bound only: they couldn't be the best any more.
        sets: The sets that a search keeps, the best first.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("sets",)

    removed: AnyUnit | list[AnyUnit]
    losses: Mapping[UnitName, Number | None]
    bounds: list[AnyUnit] | None = None
    sets: list[list[AnyUnit]] | None = None


@with_config(CHECKED)
@dataclass(frozen=True)
class LayerScores:
    """Why these layers: what was measured of each, or of each window of them.

    Attributes:
        criterion: What was measured; the lowest is removed.
        unit: `layer`, or `window`, which has the number of its first layer; `attention` or `mlp`, of each layer, or
            `sublayer`: attention and MLP of each layer in turn.
        values: One for each of these; None where it wasn't measured.
        bounds: Windows of which the value is a lower bound only.
        race: Where candidates raced, each set of layers with its loss, the standard error of its difference from the
            best, and the share of the held-out blocks that it was measured on (`calibration.race.Standing`).
        steps: Of a search.
        fitness: Of an evolution, that of the best set on all tokens: the first one's, and after each generation.
        finalists: What was compared at its end, as `calibration.comparison.Comparison` describes it.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("values", "bounds", "race", "steps", "fitness", "finalists")

    criterion: Name = "score"
    unit: Name = "layer"
    values: Annotated[list[Number | None], Field(max_length=MAX_LAYERS)] | None = None
    bounds: list[AnyUnit] | None = None
    steps: Annotated[list[SearchStep], Field(max_length=MAX_LAYERS)] | None = None
    fitness: list[Number | None] | None = None
    finalists: list[dict[str, Any]] | None = None
    race: list[dict[str, Any]] | None = None

    @property
    def by_step(self) -> list[Mapping[str, float | None]]:
        """Losses by layer of each step that measured any; of scores without steps, those of the layers."""
        if self.steps is not None:
            return [step.losses for step in self.steps if step.losses]
        return [{self.name(at): value for at, value in enumerate(self.values or ()) if value is not None}]

    def name(self, at: int) -> str:
        """The name of what a value was measured of.

        >>> LayerScores("x", "sublayer").name(7), LayerScores("x", "mlp").name(3), LayerScores("x").name(3)
        ('3.mlp', '3.mlp', '3')
        """
        if self.unit == "sublayer":
            return f"{at // 2}.{('attention', 'mlp')[at % 2]}"
        return f"{at}.{self.unit}" if self.unit in ("attention", "mlp") else str(at)
