"""No repair: the pruned model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.workspace import Workspace
from linearpatch.models.views import Interface, Site
from linearpatch.patches.patch import FittedPatch, Patch
from linearpatch.registry import component


@component("patch", "none")
@dataclass(frozen=True)
class NoPatch(Patch):
    """Nothing at the interfaces."""

    foldable: ClassVar[bool] = True

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """No sites."""
        return []

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> list[FittedPatch]:
        """Nothing to fit."""
        return []
