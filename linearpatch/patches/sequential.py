"""Operators fitted one after the other, each on the stream as those before it leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from linearpatch.calibration.candidate_edits import Repairer
from linearpatch.calibration.edited_workspace import SequentialWorkspace
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.units import Interface

if TYPE_CHECKING:
    from linearpatch.patches.patch import Patch


@dataclass(frozen=True)
class Sequential:
    """Another patch, one operator at a time; the target of each stays the dense model's stream.

    Attributes:
        wraps: Fits each.
    """

    wraps: Patch

    @property
    def repairer(self) -> Repairer:
        """Itself."""
        return self

    @property
    def compare(self) -> bool:
        """As set."""
        return self.wraps.compare

    def simpler(self) -> Mapping[str, Repairer]:
        """None: a simpler fit would need passes of its own."""
        return {}

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """The other's sites."""
        return self.wraps.place(interfaces)

    def statistics(self) -> Sequence[Statistic]:
        """Those of the other."""
        return self.wraps.statistics()

    def interface_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """None in advance: what each fit needs depends on those before it."""
        return ()

    def check_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """None in advance, either."""
        return ()

    def draft(self) -> Repairer:
        """The other's draft, which costs no pass for each interface."""
        return self.wraps.draft()

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> Sequence[PlacedOperator]:
        """Fit as the other does, on the streams that the workspace shows."""
        return self.wraps.fit(workspace, sites)

    def repair(self, workspace: Workspace, edit: Edit) -> Edit:
        """The edit with an operator at each of its interfaces."""
        fitted: list[PlacedOperator] = []
        for together in self.wraps.together(self.place(edit.interfaces)):
            before = edit.before(together[0].reader).with_operators(fitted)
            fitted += self.fit(SequentialWorkspace(workspace, before, together[0]), together)
        return edit.with_operators(fitted)
