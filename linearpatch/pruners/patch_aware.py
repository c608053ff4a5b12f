"""Units chosen by the loss of the model after its interfaces are patched, not before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from typing import ClassVar

from linearpatch.calibration.candidate_losses import CandidateLoss
from linearpatch.calibration.comparison import gather
from linearpatch.calibration.sums_in_memory import parts_that_fit
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.models.edit import Edit
from linearpatch.models.units import LAYER, Unit, plain_units
from linearpatch.pruners.iterative import rankings
from linearpatch.pruners.pruner import UNITS, Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores, SearchStep

log = logging.getLogger(__name__)

SEARCHES = ("window", "greedy", "beam")
CRITERION = "held-out NLL when patched"

Units = tuple[Unit, ...]


@component("pruner", "patch_aware", title="Patch-aware")
@dataclass(frozen=True)
class PatchAware(Pruner):
    """The layers without which the patched model's loss on held-out calibration tokens is lowest.

    Every candidate is fitted the run's patch, or what stands in for it in a search (`Patch.draft`: nothing that costs
    passes of its own), and measured. The best of them may be fitted the patch itself and measured again. Patches are
    fitted on the calibration tokens, losses measured on `calibration.held_out_blocks`.

    Attributes:
        search: `window` tries every window of n layers; sublayers have none. `greedy` removes one layer or sublayer
            after the other; those that touch share a patch, which is fitted again. `beam` keeps the `width` best sets
            of each size, grows each by every layer, and tries every window of layers of that size as well.
        width: Sets that a beam keeps.
        stop_early: Where candidates don't race, give up on one once it can't be among the best. The same layers are
            removed either way; the recorded loss of such a candidate is a lower bound.
        draft_share: The search fits on this share of the calibration blocks, and looks at this share of those held out
            (at all of them where candidates race).
        finalists: At most so many sets get the patch itself, fitted on all blocks, and are compared with its draft,
            with other simpler fits and with no patch (`patch.compare`); the set with the best of these is taken: the
            best of the search, the rivals' choices, the next best. With 1 the search has the last word.
        noise: Candidates of a window search race on the held-out tokens: one drops out once its loss is so many
            standard errors above the leader's, by paired differences (`calibration.race`). Null: none drops out by
            chance. Other searches don't race.
        rivals: Pruners whose choices, made on the held-out tokens, are candidates of a window search, and finalists
            whatever their loss.
    """

    version: ClassVar[int] = 2  # since then rivals' choices and the next best of a race are finalists
    units: ClassVar[Sequence[str]] = UNITS

    search: str = "window"
    width: int = 3
    stop_early: bool = True
    draft_share: float = 1.0
    finalists: int = 1
    noise: float | None = None
    rivals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pruner.search", self.search, SEARCHES)
        require_range("pruner.width", self.width, low=1)
        require_range("pruner.draft_share", self.draft_share, low=0, high=1)
        if self.draft_share == 0:
            raise ConfigError("pruner.draft_share is 0, and a search needs some tokens. Allowed: more than 0, up to 1.")
        require_range("pruner.finalists", self.finalists, low=1)
        if self.noise is not None:
            require_range("pruner.noise", self.noise, low=0)
        for name in self.rivals:
            require_choice("pruner.rivals", name, rankings())
        if self.search == "window" and self.unit != LAYER:
            raise ConfigError(
                f"pruner.search=window tries windows of whole layers, and pruner.unit is {self.unit}. Use "
                "pruner.search=greedy or pruner.search=beam."
            )

    @property
    def needs_held_out(self) -> bool:
        """For the losses."""
        return True

    @property
    def sees_whole_patches(self) -> bool:
        """Where there is a final."""
        return self.finalists > 1

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Search as asked, then hold the final."""
        best, scores = self._searched(workspace, n)
        if self.finalists == 1 or len(best) == 1:
            return Edit.without(best[0], scores=scores)
        finalists = best[: self.finalists]
        comparisons = dict(zip(finalists, workspace.comparisons(finalists), strict=True))
        taken = _best({layers: comparison.candidate_loss for layers, comparison in comparisons.items()})[0]
        for layers, comparison in comparisons.items():
            log.info("finalist %s: %s", plain_units(layers), comparison.summary())
            if layers != taken:  # the fit logs those of the one that is taken
                for warning in comparison.warnings(workspace.patch):
                    log.warning("finalist: %s", warning)
        results = [comparison.describe() for comparison in comparisons.values()]
        return Edit.without(taken, scores=replace(scores, finalists=results))

    def prepare(self, workspace: Workspace, sizes: Sequence[int]) -> None:
        """Search for each size, and gather what the finalists of all of them are fitted on."""
        if self.search == "window" and self.noise is not None:
            self._race_all(self._part(workspace), sizes, self.noise)
        if self.finalists > 1:
            by_size = [self._searched(workspace, n)[0][: self.finalists] for n in sizes]
            gather(workspace, workspace.patch, [units for finalists in by_size for units in finalists])

    def _searched(self, workspace: Workspace, n: int) -> tuple[list[Units], LayerScores]:
        """The best sets, and their scores; cached."""
        search = {"window": self._window, "greedy": self._greedy, "beam": self._beam}[self.search]
        return search(self._part(workspace), n)

    def _part(self, workspace: Workspace) -> Workspace:
        """What the search looks at."""
        races = self.search == "window" and self.noise is not None
        return workspace.part(self.draft_share, held_out=1.0 if races else self.draft_share)

    def _race_all(self, workspace: Workspace, sizes: Sequence[int], noise: float) -> None:
        """Race the windows of each size, fitted for several sizes at a time from one pass over the tokens."""
        edits, width = workspace.candidate_edits, workspace.hidden_size
        tried = {n: self._tried(workspace, n, self._rivals(workspace, n)) for n in sizes}
        left = [n for n in sizes if not edits.is_raced(tried[n], noise=noise)]

        def num_bytes(n: int) -> int:
            size: int = workspace.decoder.model.dtype.itemsize
            return len(tried[n]) * width**2 * size

        for together in parts_that_fit(left, num_bytes, workspace.decoder.input_device):
            edits.edits([units for n in together for units in tried[n]])
            for n in together:
                edits.race(tried[n], noise=noise)
            edits.forget()

    def _tried(self, workspace: Workspace, n: int, rivals: Sequence[Units]) -> list[Units]:
        """The candidates of a window search."""
        return list(dict.fromkeys([*self._windows(workspace, n), *rivals]))

    def _window(self, workspace: Workspace, n: int) -> tuple[list[Units], LayerScores]:
        """The best set, those that rivals choose, the next best."""
        rivals = self._rivals(workspace, n)
        ranked, scores = self._ranked(workspace, self._tried(workspace, n, rivals), n)
        return list(dict.fromkeys([ranked[0], *rivals, *ranked])), scores

    def _ranked(self, workspace: Workspace, tried: Sequence[Units], n: int) -> tuple[list[Units], LayerScores]:
        if self.noise is not None:
            return self._raced(workspace, tried, n)
        losses = self._losses(workspace, (), tried, self.finalists)
        values: list[float | None] = [None] * (workspace.num_layers - n + 1)
        windows = {layers: loss for layers, loss in losses.items() if _is_window(layers)}
        for window, loss in windows.items():
            values[window[0].layer] = loss.loss
        bounds: list[int | str] = [window[0].layer for window, loss in windows.items() if loss.is_bound]
        return _best(losses), LayerScores(CRITERION, "window", values, bounds)

    def _raced(self, workspace: Workspace, tried: Sequence[Units], n: int) -> tuple[list[Units], LayerScores]:
        assert self.noise is not None
        standings = dict(zip(tried, workspace.candidate_edits.race(tried, noise=self.noise), strict=True))
        # Those that dropped out are further behind than chance allows, but by a draft: the patch may reverse that.
        ranked = sorted(
            (layers for layers, standing in standings.items() if isfinite(standing.loss)),
            key=lambda layers: (not standings[layers].is_contender, standings[layers].loss, layers),
        )
        best = standings[ranked[0]].loss
        for layers in ranked:
            standing = standings[layers]
            if not standing.is_contender:
                break
            place = f"{standing.loss - best:.4f} ± {standing.stderr:.4f} behind" if standing.stderr else "the best"
            log.info("race: layers %s, held-out loss %.4f, %s", plain_units(layers), standing.loss, place)
        values: list[float | None] = [None] * (workspace.num_layers - n + 1)
        for layers, standing in standings.items():
            if _is_window(layers) and isfinite(standing.loss):
                values[layers[0].layer] = standing.loss
        raced = [
            {
                "removed": plain_units(layers),
                **{key: value if value != inf else None for key, value in asdict(standing).items()},
            }
            for layers, standing in standings.items()
        ]
        return ranked, LayerScores(CRITERION, "window", values, race=raced)

    def _rivals(self, workspace: Workspace, n: int) -> list[Units]:
        """The layers that other pruners would choose on the held-out tokens, whose streams are at hand."""
        choices = []
        for name in self.rivals:
            pruner = replace(rankings()[name](), protect_first=self.protect_first, protect_last=self.protect_last)
            choices.append(tuple(sorted(pruner.select(workspace.on_held_out(keep_streams=True), n).removed)))
        return choices

    def _greedy(self, workspace: Workspace, n: int) -> tuple[list[Units], LayerScores]:
        removed: Units = ()
        steps = []
        losses: dict[Units, CandidateLoss] = {}
        for size in range(1, n + 1):
            left = self.left(workspace.num_layers, removed)
            survivors = self.finalists if size == n else 1
            losses = self._losses(workspace, removed, [(*removed, unit) for unit in left], survivors)
            removed = _best(losses)[0]
            by_unit = {str(tried[-1]): loss.loss for tried, loss in losses.items()}
            bounds = [tried[-1].plain for tried, loss in losses.items() if loss.is_bound]
            steps.append(SearchStep(removed[-1].plain, by_unit, bounds))
        return _best(losses), LayerScores(CRITERION, self.unit, steps=steps)

    def _beam(self, workspace: Workspace, n: int) -> tuple[list[Units], LayerScores]:
        kept: list[Units] = [()]
        steps = []
        for size in range(1, n + 1):
            losses: dict[Units, CandidateLoss] = {}
            width = self.width if size < n else max(self.width, self.finalists)
            for base in kept:
                left = self.left(workspace.num_layers, base)
                grown = dict.fromkeys(tuple(sorted((*base, unit))) for unit in left)
                losses |= self._losses(
                    workspace, base, [candidate for candidate in grown if candidate not in losses], width
                )
            windows = [window for window in self._windows(workspace, size) if window not in losses]
            losses |= self._losses(workspace, (), windows, width)
            kept = _best(losses)[:width]
            by_unit = {
                str(unit): min(loss.loss for tried, loss in losses.items() if unit in tried)
                for unit in self.left(workspace.num_layers)
                if any(unit in tried for tried in losses)
            }
            steps.append(SearchStep(plain_units(kept[0]), by_unit, [], [*map(plain_units, kept)]))
        return kept, LayerScores(f"{CRITERION}, with the {self.unit}", self.unit, steps=steps)

    def _windows(self, workspace: Workspace, size: int) -> list[Units]:
        if self.unit != LAYER:
            return []
        allowed = self.candidates(workspace.num_layers)
        starts = range(allowed.start, allowed.stop - size + 1)
        return [tuple(Unit(layer) for layer in range(start, start + size)) for start in starts]

    def _losses(
        self, workspace: Workspace, base: Units, tried: Sequence[Units], survivors: int
    ) -> dict[Units, CandidateLoss]:
        if not tried:
            return {}
        losses = workspace.candidate_edits.losses(base, tried, survivors=survivors if self.stop_early else None)
        return dict(zip(tried, losses, strict=True))


def _is_window(layers: Units) -> bool:
    return layers[-1].layer - layers[0].layer == len(layers) - 1


def _best(losses: Mapping[Units, CandidateLoss]) -> list[Units]:
    """Sets of layers from the lowest loss to the highest; bounds, which can't be among the best, come last."""
    return sorted(losses, key=lambda layers: (losses[layers].is_bound, losses[layers].loss, layers))
