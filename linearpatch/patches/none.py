"""No repair: the pruned model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import PlacedOperator, Site
from linearpatch.models.units import Interface
from linearpatch.patches.patch import StreamPatch
from linearpatch.registry import component


@component("patch", "none")
@dataclass(frozen=True)
class NoPatch(StreamPatch):
    """Nothing at the interfaces.

    It takes the settings of a patch on the stream, which do nothing, so that a sweep over patches may set them.
    """

    foldable: ClassVar[bool] = True
    foldable_distilled: ClassVar[bool] = True  # what trains beside it are weights

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """No sites."""
        return []

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[PlacedOperator]:
        """Nothing to fit."""
        return []
