"""The whole difference between a dense model and a smaller one, as one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.fingerprint import parameter_hash
from linearpatch.models.narrowing import NarrowedLayer, widths_of
from linearpatch.models.places import Place
from linearpatch.models.quantised import num_parameters
from linearpatch.models.removal import num_parameters_of
from linearpatch.models.units import Interface, Unit, check_removed, interfaces_of, whole_layers
from linearpatch.models.view import view_of
from linearpatch.models.weight_changes import Weights
from linearpatch.results.scores import LayerScores
from linearpatch.text import counted


@dataclass(frozen=True)
class Site:
    """Where an operator is wanted.

    Attributes:
        interface: What it stands for: it maps the dense model's stream at `start` to that at `end`.
        reader: Dense index of the layer that reads the repaired stream; the number of layers for the final norm.
        place: Where it acts.
    """

    interface: Interface
    reader: int
    place: Place

    def __post_init__(self) -> None:
        if self.reader != int(self.reader):
            raise ConfigError(
                f"A patch puts an operator where layer {self.reader} would read, at {self.interface}: it was written "
                "for whole layers. Use Interface.reader for the layer that reads after an interface, or another patch "
                "where sublayers are removed."
            )


@dataclass(frozen=True, eq=False)
class PlacedOperator:
    """An operator at its site.

    Attributes:
        site: Where it acts, and what it stands for.
        module: What it computes, `[…, hidden_size]` to the same shape.
        diagnostics: Of its fit, as plain numbers.
        warning: What is doubtful about it; empty: nothing.
    """

    site: Site
    module: nn.Module
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""

    @property
    def place(self) -> Place:
        """Where it acts."""
        return self.site.place


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What makes a smaller model of a dense one. Without anything in it, it is the dense model itself.

    Attributes:
        removed: Layers and sublayers that are removed, in the order in which they were chosen.
        operators: What bridges the interfaces. Those at one place act in this order.
        narrowed: Layers that stay but lose attention heads and MLP channels.
        weights: Changed weights of what is kept, by their names in the dense model.
        scores: Why these layers, where a pruner chose them.
    """

    removed: tuple[Unit, ...] = ()
    operators: tuple[PlacedOperator, ...] = ()
    narrowed: tuple[NarrowedLayer, ...] = ()
    weights: Weights = field(default_factory=dict)
    scores: LayerScores | None = None

    @classmethod
    def of_layers(
        cls, removed: Iterable[int], operators: Iterable[PlacedOperator] = (), *, scores: LayerScores | None = None
    ) -> Edit:
        """Whole layers removed, in this order."""
        return cls(tuple(Unit(layer) for layer in removed), tuple(operators), scores=scores)

    @classmethod
    def without(cls, removed: Iterable[Unit], *, scores: LayerScores | None = None) -> Edit:
        """Layers and sublayers removed, in this order."""
        return cls(tuple(removed), scores=scores)

    def __repr__(self) -> str:
        parts = [self.summary()] if self.removed or self.narrowed else []
        parts += [counted(len(self.operators), "operator")] if self.operators else []
        parts += [counted(len(self.weights), "changed weight")] if self.weights else []
        return f"Edit({'; '.join(parts)})"

    @property
    def is_dense(self) -> bool:
        """Whether it changes nothing."""
        return not (self.removed or self.operators or self.narrowed or self.weights)

    @cached_property
    def removed_layers(self) -> tuple[int, ...]:
        """Dense indices of the layers that are removed as a whole, in the order of removal.

        Empty where only sublayers are removed, or parts of them; `removed` and `narrowed` say which.
        """
        return whole_layers(self.removed)

    @cached_property
    def removed_parts(self) -> dict[int, str]:
        """Which sublayer, `attention` or `mlp`, the layers lack that stay without one, by dense index."""
        whole = set(self.removed_layers)
        return {unit.layer: unit.part for unit in sorted(self.removed) if unit.layer not in whole}

    @cached_property
    def interfaces(self) -> list[Interface]:
        """Where removed layers and sublayers left a cut."""
        return interfaces_of(self.removed)

    def first_difference(self, num_layers: int) -> int:
        """The first layer that the edited model lacks or runs otherwise; the number of layers where there is none."""
        layers = [unit.layer for unit in self.removed] + [narrowed_layer.layer for narrowed_layer in self.narrowed]
        layers += [placed.place.first_layer for placed in self.operators] + [name.layer for name in self.weights]
        return min(layers, default=num_layers)

    @property
    def is_stock(self) -> bool:
        """Whether a stock configuration may describe its layers: all that are left are whole."""
        return not (self.narrowed or self.removed_parts)

    @property
    def can_fold(self) -> bool:
        """Whether stock weights may hold all operators, going by their form."""
        return self.is_stock and self.operators_fold

    @property
    def operators_fold(self) -> bool:
        """Whether weights of what is kept may hold all operators, going by their form."""
        return all(placed.place.can_fold(placed.module) for placed in self.operators)

    @property
    def has_mixed_layers(self) -> bool:
        """Whether formats for stock weights need layers of several kinds: some lost a sublayer, or are operators."""
        return bool(self.removed_parts or self.new_layers)

    @cached_property
    def new_layers(self) -> tuple[PlacedOperator, ...]:
        """Operators that formats with layers of other kinds hold as layers of their own."""
        return tuple(placed for placed in self.operators if placed.place.can_be_layer(placed.module))

    @property
    def without_new_layers(self) -> Edit:
        """The same without those."""
        return self.with_operators(placed for placed in self.operators if placed not in self.new_layers)

    @property
    def num_added_parameters(self) -> int:
        """What the operators add to a model: nothing where weights that it has absorb all of them."""
        added = [] if self.can_fold else [placed for placed in self.operators if placed.place.adds_parameters]
        return sum(parameter.numel() for placed in added for parameter in placed.module.parameters())

    def with_operators(self, operators: Iterable[PlacedOperator]) -> Edit:
        """The same with other operators."""
        return replace(self, operators=tuple(operators))

    def without_layers(self, layers: Iterable[int]) -> Edit:
        """The same without some layers more."""
        return self.without_units(map(Unit, layers))

    def without_units(self, units: Iterable[Unit]) -> Edit:
        """The same without some layers or sublayers more."""
        return replace(self, removed=(*self.removed, *units))

    def before(self, layer: int) -> Edit:
        """What of it lies before a layer: neither later layers nor operators."""
        return Edit(
            tuple(unit for unit in self.removed if unit.layer < layer),
            narrowed=tuple(narrowed_layer for narrowed_layer in self.narrowed if narrowed_layer.layer < layer),
            weights={name: change for name, change in self.weights.items() if name.layer < layer},
        )

    def with_modules(self, modules: Sequence[nn.Module]) -> Edit:
        """The same with other modules at the places."""
        placed = zip(self.operators, modules, strict=True)
        return self.with_operators(replace(operator, module=module) for operator, module in placed)

    def with_weights(self, weights: Weights) -> Edit:
        """The same with other changed weights."""
        return replace(self, weights=weights)

    def identity(self) -> dict[str, Any]:
        """What distinguishes it from other edits of the same weights, as plain values for cache keys."""
        key: dict[str, Any] = {"removed": [[unit.layer, unit.part] for unit in sorted(self.removed)]}
        key["operators"] = None
        if self.operators:
            places = [placed.place.spec() for placed in self.operators]
            key["operators"] = [places, parameter_hash([placed.module for placed in self.operators])]
        if self.narrowed:
            key["narrowed"] = [
                [narrowed_layer.layer, list(narrowed_layer.heads), list(narrowed_layer.channels)]
                for narrowed_layer in sorted(self.narrowed)
            ]
        if self.weights:
            key["weights"] = self._weights_identity
        return key

    @cached_property
    def _weights_identity(self) -> list[Any]:
        names = [[name.layer, name.name, change.kind] for name, change in self.weights.items()]
        return [names, parameter_hash(list(self.weights.values()))]

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """The edited model: an ordinary Hugging Face model that shares every unchanged weight with the dense one.

        Args:
            model: The dense model that the edit was made for; it doesn't change.

        Raises:
            ConfigError: it has no such layers.
            ModelError: its shape is another, or its family can't lack them.
        """
        return self.view(decoder_of(model))

    def view(self, dense: Decoder) -> PreTrainedModel:
        """The edited model: it shares every unchanged weight with the dense one, which doesn't change.

        Raises:
            ConfigError: a layer doesn't exist, is named twice, or none would be left.
            ModelError: the edit was made for a model of another shape, the model's configuration can't describe what
                would be left, or its family's sublayers can't be removed one without the other.
        """
        check_removed(self.removed, dense.num_layers)
        for placed in self.operators:
            placed.place.check(dense, placed.module)
        operators = [(placed.place, placed.module) for placed in self.operators]
        return view_of(dense, self.removed_layers, operators, self.narrowed, self.weights, self.removed_parts)

    def decoder(self, dense: Decoder) -> Decoder:
        """The view, and what we know of it; the dense model itself where nothing is changed."""
        return dense if self.is_dense else decoder_of(self.view(dense))

    def num_parameters_removed(self, dense: Decoder) -> int:
        """Parameters of the dense model that the edited one lacks; operators may add some."""
        whole = sum(num_parameters([dense.layers[layer]]) for layer in self.removed_layers)
        whole += sum(num_parameters_of(dense, layer, part) for layer, part in self.removed_parts.items())
        return whole + sum(
            widths_of(dense, narrowed_layer.layer).parameters_removed(narrowed_layer)
            for narrowed_layer in self.narrowed
        )

    def summary(self) -> str:
        """What is removed, in a line."""
        if not self.narrowed:
            what = "sublayers" if self.removed_parts else "layers"
            interfaces = ", ".join(map(str, self.interfaces))
            return f"removed {what} {self.describe_removed()}: interfaces {interfaces}"
        first, last = min(self.narrowed), max(self.narrowed)
        return (
            f"narrowed layers {first.layer} to {last.layer}: {len(first.heads)} key-value heads and "
            f"{len(first.channels):,} MLP channels are left in layer {first.layer}"
        )

    def describe_removed(self) -> list[int | str]:
        """What is removed as plain values, in the order of removal."""
        return [unit.plain for unit in self.removed]


DENSE = Edit()
