"""What can be removed, and the cuts that removals leave in the residual stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.sublayers import ATTENTION, MLP

LAYER, SUBLAYER = "layer", "sublayer"  # the latter: either kind
PARTS = (LAYER, ATTENTION, MLP)
SUBLAYERS = (ATTENTION, MLP)
UNIT_NAME = re.compile(r"(\d+)\.(attention|mlp)")


@dataclass(frozen=True, order=True)
class Unit:
    """What can be removed: a layer, or one of its sublayers.

    Attributes:
        layer: Dense index.
        part: `layer` for all of it, `attention` or `mlp`.
    """

    layer: int
    part: str = LAYER

    @property
    def start(self) -> float:
        """Where in the stream it reads: `i` is what layer i reads, `i + ½` what its MLP reads."""
        return self.layer + 0.5 if self.part == MLP else self.layer

    @property
    def end(self) -> float:
        """Where in the stream the next sublayer reads what it writes."""
        return self.layer + 0.5 if self.part == ATTENTION else self.layer + 1

    @property
    def plain(self) -> int | str:
        """The index of a layer; of a sublayer its name, such as `3.attention`."""
        return self.layer if self.part == LAYER else f"{self.layer}.{self.part}"

    def __str__(self) -> str:
        return str(self.plain)


Removable = int | Unit  # a layer by its index, or any unit


def unit_from(name: int | str) -> Unit:
    """The unit of a plain value.

    >>> unit_from("3.attention")
    Unit(layer=3, part='attention')

    Raises:
        ConfigError: there is no such unit.
    """
    if isinstance(name, int) or name.isdecimal():
        return Unit(int(name))
    match = UNIT_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} names no sublayer. Write LAYER.attention or LAYER.mlp, such as 3.attention.")
    return Unit(int(match[1]), match[2])


@dataclass(frozen=True, order=True)
class Interface:
    """What lies between two places of the stream was removed: who reads at `end` reads what came to `start`.

    Place `i` is what layer i reads (the final norm for the number of layers), place `i + ½` what its MLP reads. So
    `[3, 6)` are three layers, `[3, 3.5)` is the attention of layer 3, `[3.5, 4)` its MLP.
    """

    start: float
    end: float

    @property
    def reader(self) -> int:
        """The layer whose input an operator on the stream acts on, and which reads after the interface."""
        return int(self.end)

    @property
    def is_of_layers(self) -> bool:
        """Whether it begins and ends between layers."""
        return self.start == int(self.start) and self.end == int(self.end)

    @property
    def layers(self) -> range:
        """The layers that are removed.

        Raises:
            ConfigError: it begins or ends between the sublayers of a layer.
        """
        if not self.is_of_layers:
            raise ConfigError(
                f"{self} begins or ends between the sublayers of a layer, and this patch repairs whole layers. Use a "
                "patch on the stream, such as patch=lstsq, nbl or average_update, or pruner.unit=layer."
            )
        return range(int(self.start), int(self.end))

    @property
    def parts(self) -> list[Interface]:
        """It layer by layer; sublayer by sublayer where it begins or ends between the two of a layer."""
        step = 1 if self.is_of_layers else 0.5
        number = int((self.end - self.start) / step)
        ends = [self.start + step * index for index in range(number + 1)]
        ends = [int(end) if end == int(end) else end for end in ends]
        return [Interface(start, end) for start, end in pairwise(ends)]

    def __str__(self) -> str:
        return f"[{self.start:g}, {self.end:g})"


def as_units(removed: Iterable[int | str | Unit]) -> list[Unit]:
    """Units from what names them: layers by their indices, sublayers by their names."""
    return [unit if isinstance(unit, Unit) else unit_from(unit) for unit in removed]


def plain_units(removed: Iterable[int | str | Unit]) -> list[int | str]:
    """Units as plain values, in the order of the model."""
    return [unit.plain for unit in sorted(as_units(removed))]


def sublayer_before(place: float) -> Unit:
    """The sublayer that writes what is read at a place of the stream.

    >>> sublayer_before(3), sublayer_before(3.5)
    (Unit(layer=2, part='mlp'), Unit(layer=3, part='attention'))
    """
    layer = int(place)
    return Unit(layer, ATTENTION) if place != layer else Unit(layer - 1, MLP)


def interfaces_of(removed: Iterable[int | str | Unit]) -> list[Interface]:
    """The cuts that removals leave, in order; touching removals form one.

    >>> interfaces_of([5, 3, 4, 9])
    [Interface(start=3, end=6), Interface(start=9, end=10)]
    >>> interfaces_of([Unit(3, "mlp"), Unit(4, "attention")])
    [Interface(start=3.5, end=4.5)]
    """
    interfaces: list[Interface] = []
    for start, end in sorted((unit.start, unit.end) for unit in as_units(removed)):
        if interfaces and interfaces[-1].end == start:
            interfaces[-1] = Interface(interfaces[-1].start, end)
        else:
            interfaces.append(Interface(start, end))
    return interfaces


def whole_layers(removed: Sequence[Unit]) -> tuple[int, ...]:
    """Dense indices of the layers that are removed as a whole, at once or part by part, in the order of removal."""
    layers: list[int] = []
    parts: dict[int, set[str]] = {}
    for unit in removed:
        own = parts.setdefault(unit.layer, set())
        own.add(unit.part)
        if unit.part == LAYER or own >= set(SUBLAYERS):
            layers.append(unit.layer)
    return tuple(layers)


def check_removed(removed: Sequence[Unit], num_layers: int) -> None:
    """Reject units that can't be removed together.

    Raises:
        ConfigError: a layer doesn't exist, is named twice, or none would be left.
        ModelError: no attention would be left.
    """
    unknown = [unit.plain for unit in removed if not 0 <= unit.layer < num_layers]
    if unknown:
        raise ConfigError(f"Layers {unknown} don't exist. Allowed: 0 to {num_layers - 1}.")
    whole = {unit.layer for unit in removed if unit.part == LAYER}
    if len(set(removed)) != len(removed) or any(unit.layer in whole and unit.part != LAYER for unit in removed):
        names = [unit.plain for unit in removed]
        raise ConfigError(f"Layers {names} to remove name a layer twice. Name each once.")
    if len(whole_layers(removed)) >= num_layers:
        raise ConfigError(f"All {num_layers} layers would be removed. Keep at least one.")
    if len({unit.layer for unit in removed if unit.part != MLP}) >= num_layers:
        raise ModelError(
            f"No attention would be left of the model's {num_layers} layers, so that no token would see another. Keep "
            "that of at least one layer."
        )
