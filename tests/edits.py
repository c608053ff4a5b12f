"""Edits, written shortly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.places import InProjection, OnOutput, OnStream
from linearpatch.models.sublayers import ATTENTION
from linearpatch.models.units import Interface, as_units
from linearpatch.patches.patch import Patch

Operators = Iterable[PlacedOperator | tuple[Site, nn.Module]]


def on_stream(start: float, end: float, reader: int | None = None) -> Site:
    """On what layer `reader` reads; that behind the interface if it isn't named."""
    reader = int(end) if reader is None else reader
    return Site(Interface(start, end), reader, OnStream(reader))


def on_mlp(start: int, end: int) -> Site:
    """On the output of the MLP before the interface."""
    return Site(Interface(start, end), end, OnOutput(start - 1))


def in_projection(start: int, end: int) -> Site:
    """In the output projection of the MLP before the interface."""
    return Site(Interface(start, end), end, InProjection(start - 1))


def in_attention_projection(layer: int) -> Site:
    """In the output projection of a layer's attention, whose MLP is removed."""
    return Site(Interface(layer + 0.5, layer + 1), layer + 1, InProjection(layer, ATTENTION))


def edit_of(removed: Iterable[int | str], operators: Operators = ()) -> Edit:
    """Layers and sublayers removed, and operators at their sites."""
    placed = (one if isinstance(one, PlacedOperator) else PlacedOperator(*one) for one in operators)
    return Edit.without(as_units(removed)).with_operators(placed)


def view_of(dense: Decoder, removed: Iterable[int], operators: Operators = ()) -> PreTrainedModel:
    """The edited model."""
    return edit_of(removed, operators).view(dense)


def repaired(patch: Patch, workspace: Workspace, removed: Sequence[int]) -> tuple[PlacedOperator, ...]:
    """The operators that a patch fits where layers are removed."""
    return patch.repair(workspace, Edit.of_layers(removed)).operators
