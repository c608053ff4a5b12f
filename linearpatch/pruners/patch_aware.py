"""Layers chosen for what is left of the model after its gaps are patched, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.calibration.suffix import CandidateLoss
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.pruners.pruner import Pruner, Selection
from linearpatch.registry import component

SEARCHES = ("window", "greedy", "beam")
CRITERION = "held-out NLL when patched"

Layers = tuple[int, ...]


@component("pruner", "patch_aware")
@dataclass(frozen=True)
class PatchAware(Pruner):
    """The layers without which the patched model's loss on held-out calibration tokens is lowest.

    Every candidate is fitted the run's patch (`Patch.draft`: without what is chosen or fitted by passes of its own)
    and measured. Patches are fitted on the calibration tokens, losses measured on `calibration.held_out_blocks`.

    Attributes:
        search: `window` tries every window of n layers. `greedy` removes one layer after the other; layers
            that touch share a patch, which is fitted anew. `beam` keeps the `width` best sets of each size,
            grows each by every layer, and tries every window of that size as well.
        width: Sets that a beam keeps.
        stop_early: Give up on a candidate once it can't be among the best. The same layers are removed
            either way; the recorded loss of such a candidate is a lower bound.
    """

    needs_held_out: ClassVar[bool] = True

    search: str = "window"
    width: int = 3
    stop_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pruner.search", self.search, SEARCHES)
        require_range("pruner.width", self.width, low=1)
        if self.iterative:
            raise ConfigError(
                "pruner=patch_aware patches every candidate already, so pruner.iterative=true has no meaning for it. "
                "Use pruner.search=greedy to remove one layer at a time."
            )

    def rough_passes(self, num_layers: int, n: int) -> float:
        """Half of the layers run for each candidate."""
        windows, singles = num_layers - n + 1, n * (num_layers - n / 2)
        tried = {"window": windows, "greedy": singles, "beam": self.width * singles + n * windows}
        return 0.5 * tried[self.search]

    def select(self, workspace: Workspace, n: int) -> Selection:
        """Search as asked."""
        return {"window": self._window, "greedy": self._greedy, "beam": self._beam}[self.search](workspace, n)

    def _window(self, workspace: Workspace, n: int) -> Selection:
        losses = self._losses(workspace, (), self._windows(workspace, n))
        values: list[float | None] = [None] * (workspace.num_layers - n + 1)
        for window, loss in losses.items():
            values[window[0]] = loss.loss
        bounds = [window[0] for window, loss in losses.items() if loss.is_bound]
        scores = {"criterion": CRITERION, "unit": "window", "values": values, "bounds": bounds}
        return Selection(_best(losses)[0], scores)

    def _greedy(self, workspace: Workspace, n: int) -> Selection:
        removed: Layers = ()
        steps = []
        for _ in range(n):
            layers = [layer for layer in self.candidates(workspace.num_layers) if layer not in removed]
            losses = self._losses(workspace, removed, [(*removed, layer) for layer in layers])
            removed = _best(losses)[0]
            steps.append(
                {
                    "removed": removed[-1],
                    "losses": {str(tried[-1]): loss.loss for tried, loss in losses.items()},
                    "bounds": [tried[-1] for tried, loss in losses.items() if loss.is_bound],
                }
            )
        return Selection(removed, {"criterion": CRITERION, "unit": "layer", "steps": steps})

    def _beam(self, workspace: Workspace, n: int) -> Selection:
        kept: list[Layers] = [()]
        steps = []
        for size in range(1, n + 1):
            losses: dict[Layers, CandidateLoss] = {}
            for base in kept:
                layers = [layer for layer in self.candidates(workspace.num_layers) if layer not in base]
                grown = dict.fromkeys(tuple(sorted((*base, layer))) for layer in layers)
                losses |= self._losses(workspace, base, [one for one in grown if one not in losses], self.width)
            windows = [window for window in self._windows(workspace, size) if window not in losses]
            losses |= self._losses(workspace, (), windows, self.width)
            kept = _best(losses)[: self.width]
            with_layer = {
                str(layer): min(loss.loss for tried, loss in losses.items() if layer in tried)
                for layer in self.candidates(workspace.num_layers)
            }
            steps.append({"removed": list(kept[0]), "losses": with_layer, "bounds": [], "sets": [*map(list, kept)]})
        return Selection(kept[0], {"criterion": f"{CRITERION}, with the layer", "unit": "layer", "steps": steps})

    def _windows(self, workspace: Workspace, size: int) -> list[Layers]:
        allowed = self.candidates(workspace.num_layers)
        return [tuple(range(start, start + size)) for start in range(allowed.start, allowed.stop - size + 1)]

    def _losses(
        self, workspace: Workspace, base: Layers, tried: Sequence[Layers], survivors: int = 1
    ) -> dict[Layers, CandidateLoss]:
        if not tried:
            return {}
        losses = workspace.drafts.losses(base, tried, survivors=survivors if self.stop_early else None)
        return dict(zip(tried, losses, strict=True))


def _best(losses: Mapping[Layers, CandidateLoss]) -> list[Layers]:
    """Sets of layers from the lowest loss to the highest; bounds, which can't be among the best, come last."""
    return sorted(losses, key=lambda layers: (losses[layers].is_bound, losses[layers].loss, layers))
