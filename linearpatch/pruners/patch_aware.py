"""Layers chosen by the loss of the model after its interfaces are patched, not before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from linearpatch.calibration.candidate_losses import CandidateLoss
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component, name_of
from linearpatch.results.scores import LayerScores, SearchStep

log = logging.getLogger(__name__)

SEARCHES = ("window", "greedy", "beam")
CRITERION = "held-out NLL when patched"

Layers = tuple[int, ...]


@component("pruner", "patch_aware", title="Patch-aware")
@dataclass(frozen=True)
class PatchAware(Pruner):
    """The layers without which the patched model's loss on held-out calibration tokens is lowest.

    Every candidate is fitted the run's patch, or what stands in for it in a search (`Patch.draft`: nothing that costs
    passes of its own), and measured. The best of them may be fitted the patch itself and measured again. Patches are
    fitted on the calibration tokens, losses measured on `calibration.held_out_blocks`.

    Attributes:
        search: `window` tries every window of n layers. `greedy` removes one layer after the other; layers
            that touch share a patch, which is fitted again. `beam` keeps the `width` best sets of each size,
            grows each by every layer, and tries every window of that size as well.
        width: Sets that a beam keeps.
        stop_early: Give up on a candidate once it can't be among the best. The same layers are removed
            either way; the recorded loss of such a candidate is a lower bound.
        draft_share: The search looks at this share of the calibration blocks and of those held out.
        finalists: So many of the best sets are fitted the patch itself on all blocks, and compared with its draft, with
            other simpler fits and with no patch (`patch.compare`); the set with the best of these is taken.
            With 1 the search has the last word.
    """

    needs_held_out: ClassVar[bool] = True

    search: str = "window"
    width: int = 3
    stop_early: bool = True
    draft_share: float = 1.0
    finalists: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pruner.search", self.search, SEARCHES)
        require_range("pruner.width", self.width, low=1)
        require_range("pruner.draft_share", self.draft_share, low=0, high=1)
        if self.draft_share == 0:
            raise ConfigError("pruner.draft_share is 0, and a search needs some tokens. Allowed: more than 0, up to 1.")
        require_range("pruner.finalists", self.finalists, low=1)

    @property
    def sees_whole_patches(self) -> bool:
        """Where there is a final."""
        return self.finalists > 1

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Search as asked, then hold the final."""
        search = {"window": self._window, "greedy": self._greedy, "beam": self._beam}[self.search]
        best, scores = search(workspace.part(self.draft_share), n)
        if self.finalists == 1:
            return Edit.of_layers(best[0], scores=scores)
        finalists = best[: self.finalists]
        comparisons = dict(zip(finalists, workspace.comparisons(finalists), strict=True))
        taken = _best({layers: one.candidate_loss for layers, one in comparisons.items()})[0]
        for layers, one in comparisons.items():
            log.info("finalist %s: %s", sorted(layers), one.summary())
            if layers != taken:  # the fit logs those of the one that is taken
                for warning in one.warnings(name_of(workspace.patch)):
                    log.warning("finalist: %s", warning)
        results = [one.describe() for one in comparisons.values()]
        return Edit.of_layers(taken, scores=replace(scores, finalists=results))

    def _window(self, workspace: Workspace, n: int) -> tuple[list[Layers], LayerScores]:
        losses = self._losses(workspace, (), self._windows(workspace, n), self.finalists)
        values: list[float | None] = [None] * (workspace.num_layers - n + 1)
        for window, loss in losses.items():
            values[window[0]] = loss.loss
        bounds = [window[0] for window, loss in losses.items() if loss.is_bound]
        return _best(losses), LayerScores(CRITERION, "window", values, bounds)

    def _greedy(self, workspace: Workspace, n: int) -> tuple[list[Layers], LayerScores]:
        removed: Layers = ()
        steps = []
        losses: dict[Layers, CandidateLoss] = {}
        for size in range(1, n + 1):
            layers = [layer for layer in self.candidates(workspace.num_layers) if layer not in removed]
            survivors = self.finalists if size == n else 1
            losses = self._losses(workspace, removed, [(*removed, layer) for layer in layers], survivors)
            removed = _best(losses)[0]
            by_layer = {str(tried[-1]): loss.loss for tried, loss in losses.items()}
            bounds = [tried[-1] for tried, loss in losses.items() if loss.is_bound]
            steps.append(SearchStep(removed[-1], by_layer, bounds))
        return _best(losses), LayerScores(CRITERION, steps=steps)

    def _beam(self, workspace: Workspace, n: int) -> tuple[list[Layers], LayerScores]:
        kept: list[Layers] = [()]
        steps = []
        for size in range(1, n + 1):
            losses: dict[Layers, CandidateLoss] = {}
            width = self.width if size < n else max(self.width, self.finalists)
            for base in kept:
                layers = [layer for layer in self.candidates(workspace.num_layers) if layer not in base]
                grown = dict.fromkeys(tuple(sorted((*base, layer))) for layer in layers)
                losses |= self._losses(workspace, base, [one for one in grown if one not in losses], width)
            windows = [window for window in self._windows(workspace, size) if window not in losses]
            losses |= self._losses(workspace, (), windows, width)
            kept = _best(losses)[:width]
            by_layer = {
                str(layer): min(loss.loss for tried, loss in losses.items() if layer in tried)
                for layer in self.candidates(workspace.num_layers)
            }
            steps.append(SearchStep(list(kept[0]), by_layer, [], [*map(list, kept)]))
        return kept, LayerScores(f"{CRITERION}, with the layer", steps=steps)

    def _windows(self, workspace: Workspace, size: int) -> list[Layers]:
        allowed = self.candidates(workspace.num_layers)
        return [tuple(range(start, start + size)) for start in range(allowed.start, allowed.stop - size + 1)]

    def _losses(
        self, workspace: Workspace, base: Layers, tried: Sequence[Layers], survivors: int
    ) -> dict[Layers, CandidateLoss]:
        if not tried:
            return {}
        losses = workspace.candidate_edits.losses(base, tried, survivors=survivors if self.stop_early else None)
        return dict(zip(tried, losses, strict=True))


def _best(losses: Mapping[Layers, CandidateLoss]) -> list[Layers]:
    """Sets of layers from the lowest loss to the highest; bounds, which can't be among the best, come last."""
    return sorted(losses, key=lambda layers: (losses[layers].is_bound, losses[layers].loss, layers))
