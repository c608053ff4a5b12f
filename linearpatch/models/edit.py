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
from linearpatch.models.view import view_of
from linearpatch.models.weight_changes import Weights
from linearpatch.results.scores import LayerScores

PARTS = ("layer", "attention", "mlp")


@dataclass(frozen=True, order=True)
class Unit:
    """What can be removed: a layer, or one of its sublayers.

    Attributes:
        layer: Dense index.
        part: `layer` for all of it, `attention` or `mlp`.
    """

    layer: int
    part: str = "layer"


@dataclass(frozen=True, order=True)
class Interface:
    """Layers `[start, end)` were removed: layer `end` (or the final norm) reads what layer `start` used to read."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


@dataclass(frozen=True)
class Site:
    """Where an operator is wanted.

    Attributes:
        interface: What it stands for: it maps stream `start` of the dense model to stream `end`.
        reader: Dense index of the layer that reads the repaired stream; the number of layers for the final norm.
        place: Where it acts.
    """

    interface: Interface
    reader: int
    place: Place


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


@dataclass(frozen=True, eq=False)
class Edit:
    """What makes a smaller model of a dense one. Without anything in it, it is the dense model itself.

    Attributes:
        removed: What is removed, in the order in which it was chosen.
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

    @property
    def is_dense(self) -> bool:
        """Whether it changes nothing."""
        return not (self.removed or self.operators or self.narrowed or self.weights)

    @cached_property
    def removed_layers(self) -> tuple[int, ...]:
        """Dense indices of the layers that are removed as a whole, in the order of removal."""
        return tuple(unit.layer for unit in self.removed if unit.part == "layer")

    @cached_property
    def interfaces(self) -> list[Interface]:
        """Where removed layers left a cut."""
        return interfaces_of(self.removed_layers)

    def first_difference(self, num_layers: int) -> int:
        """The first layer that the edited model lacks or runs otherwise; the number of layers where there is none."""
        layers = [unit.layer for unit in self.removed] + [narrowed_layer.layer for narrowed_layer in self.narrowed]
        layers += [placed.place.first_layer for placed in self.operators] + [name.layer for name in self.weights]
        return min(layers, default=num_layers)

    @property
    def can_fold(self) -> bool:
        """Whether stock weights may hold all operators, going by their form."""
        return all(placed.place.can_fold(placed.module) for placed in self.operators)

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
        return replace(self, removed=(*self.removed, *map(Unit, layers)))

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
            model: The dense model; it doesn't change.
        """
        return self.view(decoder_of(model))

    def view(self, dense: Decoder) -> PreTrainedModel:
        """The edited model: it shares every unchanged weight with the dense one, which doesn't change.

        Raises:
            ConfigError: a layer doesn't exist, is named twice, or none would be left.
            ModelError: the model's configuration can't describe what would be left.
        """
        check_removed(self.removed_layers, dense.num_layers)
        operators = [(placed.place, placed.module) for placed in self.operators]
        return view_of(dense, self.removed_layers, operators, self.narrowed, self.weights)

    def decoder(self, dense: Decoder) -> Decoder:
        """The view, and what we know of it; the dense model itself where nothing is changed."""
        return dense if self.is_dense else decoder_of(self.view(dense))

    def num_parameters_removed(self, dense: Decoder) -> int:
        """Parameters of the dense model that the edited one lacks; operators may add some."""
        whole = sum(p.numel() for layer in self.removed_layers for p in dense.layers[layer].parameters())
        return whole + sum(
            widths_of(dense, narrowed_layer.layer).parameters_removed(narrowed_layer)
            for narrowed_layer in self.narrowed
        )

    def summary(self) -> str:
        """What is removed, in a line."""
        if not self.narrowed:
            interfaces = ", ".join(map(str, self.interfaces))
            return f"removed layers {list(self.removed_layers)}: interfaces {interfaces}"
        first, last = min(self.narrowed), max(self.narrowed)
        return (
            f"narrowed layers {first.layer} to {last.layer}: {len(first.heads)} key-value heads and "
            f"{len(first.channels):,} MLP channels are left in layer {first.layer}"
        )

    def describe_removed(self) -> list[int] | list[str]:
        """What is removed as plain values, in the order of removal."""
        if all(unit.part == "layer" for unit in self.removed):
            return [unit.layer for unit in self.removed]
        return [f"{unit.layer}.{unit.part}" for unit in self.removed]


DENSE = Edit()


def interfaces_of(removed: Iterable[int]) -> list[Interface]:
    """The cuts that removed layers leave, in order; touching removals form one.

    >>> interfaces_of([5, 3, 4, 9])
    [Interface(start=3, end=6), Interface(start=9, end=10)]
    """
    interfaces: list[Interface] = []
    for layer in sorted(removed):
        if interfaces and interfaces[-1].end == layer:
            interfaces[-1] = Interface(interfaces[-1].start, layer + 1)
        else:
            interfaces.append(Interface(layer, layer + 1))
    return interfaces


def check_removed(removed: Sequence[int], num_layers: int) -> None:
    """Reject layers that can't be removed together.

    Raises:
        ConfigError: a layer doesn't exist, is named twice, or none would be left.
    """
    unknown = [layer for layer in removed if not 0 <= layer < num_layers]
    if unknown:
        raise ConfigError(f"Layers {unknown} don't exist. Allowed: 0 to {num_layers - 1}.")
    if len(set(removed)) != len(removed):
        raise ConfigError(f"Layers {list(removed)} to remove name a layer twice. Name each once.")
    if len(removed) >= num_layers:
        raise ConfigError(f"All {num_layers} layers would be removed. Keep at least one.")
