"""Edits, written shortly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.places import InProjection, OnOutput, OnStream
from linearpatch.models.units import Interface
from linearpatch.patches.patch import Patch

Operators = Iterable[PlacedOperator | tuple[Site, nn.Module]]


def on_stream(start: int, end: int, reader: int | None = None) -> Site:
    """On what layer `reader` reads; that behind the interface if it isn't named."""
    reader = end if reader is None else reader
    return Site(Interface(start, end), reader, OnStream(reader))


def on_mlp(start: int, end: int) -> Site:
    """On the output of the MLP before the interface."""
    return Site(Interface(start, end), end, OnOutput(start - 1))


def in_projection(start: int, end: int) -> Site:
    """In the output projection of the MLP before the interface."""
    return Site(Interface(start, end), end, InProjection(start - 1))


def edit_of(removed: Iterable[int], operators: Operators = ()) -> Edit:
    """Layers removed, and operators at their sites."""
    return Edit.of_layers(
        removed, (one if isinstance(one, PlacedOperator) else PlacedOperator(*one) for one in operators)
    )


def view_of(dense: Decoder, removed: Iterable[int], operators: Operators = ()) -> PreTrainedModel:
    """The edited model."""
    return edit_of(removed, operators).view(dense)


def repaired(patch: Patch, workspace: Workspace, removed: Sequence[int]) -> tuple[PlacedOperator, ...]:
    """The operators that a patch fits where layers are removed."""
    return patch.repair(workspace, Edit.of_layers(removed)).operators
