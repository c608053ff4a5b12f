"""Models with layers gone and their gaps patched, by the dozen: what a search over patched models tries.

A gap's patch depends only on where the gap begins and ends, so each is fitted once, and all that a step of a
search comes across are fitted together, from one pass over the calibration tokens. Their Gram matrices stay in
memory only until they are solved; where a model is so wide that they don't fit at once, the pass is repeated for
each part of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from linearpatch.cache import Entry
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.suffix import CandidateLoss, Shortened
from linearpatch.models.decoder import Decoder
from linearpatch.models.views import Interface, Site, interfaces_of
from linearpatch.registry import identity

if TYPE_CHECKING:
    from linearpatch.calibration.workspace import Workspace

log = logging.getLogger(__name__)

VERSION = 2  # of the losses below; raise it when their numbers change
GRAM_BYTES = 8 * 2**30  # of Gram matrices that exist at a time


class Fitted(Protocol):
    """An operator at its site."""

    @property
    def site(self) -> Site:
        """Where it sits."""

    @property
    def module(self) -> nn.Module:
        """Maps `[…, hidden_size]` to the same shape."""

    @property
    def diagnostics(self) -> Mapping[str, float]:
        """How the fit went, as plain numbers."""

    @property
    def warning(self) -> str:
        """What is doubtful about it; empty: nothing."""


class Fits(Protocol):
    """What drafts and comparisons need of a patch."""

    @property
    def compare(self) -> bool:
        """Whether it is compared with no patch and with simpler fits."""

    def simpler(self) -> Mapping[str, Fits]:
        """Simpler fits that it is compared with, by what they set otherwise."""

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """The sites at some interfaces."""

    def statistics(self) -> Sequence[Statistic]:
        """Statistics wanted whichever layers go."""

    def gap_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """Statistics that `fit` asks for at some sites."""

    def draft(self) -> Fits:
        """What stands in for it where many gaps are fitted."""

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> Sequence[Fitted]:
        """Fit one operator for each site."""

    def repair(self, workspace: Workspace, removed: Sequence[int]) -> Sequence[Fitted]:
        """Bridge the gaps that removed layers leave."""


class Drafts:
    """Patches for the gaps that a search comes across.

    Args:
        workspace: The dense model and its calibration tokens.
        patch: How gaps are bridged: a patch whose fit at one gap doesn't depend on others.
    """

    def __init__(self, workspace: Workspace, patch: Fits) -> None:
        self.workspace = workspace
        self.patch = patch
        self._patches: dict[Interface, tuple[tuple[Site, nn.Module], ...]] = {}

    def models(self, removals: Sequence[Sequence[int]]) -> list[Shortened]:
        """The model without these layers and patched, for each of some sets of layers."""
        gaps = [interfaces_of(removed) for removed in removals]
        self._fit(dict.fromkeys(gap for some in gaps for gap in some if gap not in self._patches))
        return [
            Shortened(tuple(removed), tuple(patch for gap in some for patch in self._patches[gap]))
            for removed, some in zip(removals, gaps, strict=True)
        ]

    def losses(
        self, removed: Sequence[int], removals: Sequence[Sequence[int]], *, survivors: int | None = None
    ) -> list[CandidateLoss]:
        """Held-out loss of the patched model without each of some sets of layers; cached.

        Args:
            removed: Layers gone in all of them: the streams of that model, patched, are kept.
            removals: Sets of layers.
            survivors: Only so many of the best need exact losses; others may be lower bounds.

        Raises:
            ConfigError: no calibration tokens are held out.
            NumericsError: no candidate has a finite loss.
        """
        workspace = self.workspace
        removals = [sorted(candidate) for candidate in removals]

        def compute() -> list[CandidateLoss]:
            base, *models = self.models([removed, *removals])
            return workspace.losses(workspace.held_out, base, models, survivors=survivors)

        key = {"removed": sorted(removed), "removals": removals, "survivors": survivors}
        return _kept(workspace, self.patch, key, compute)

    def _fit(self, gaps: Iterable[Interface]) -> None:
        sites = {gap: self.patch.place([gap]) for gap in gaps}
        missing = [site for some in sites.values() for site in some]
        at_once = max(1, GRAM_BYTES // (2 * 8 * self.workspace.hidden_size**2))
        if len(missing) > at_once:
            passes = ceil(len(missing) / at_once)
            log.info("Gram matrices of %d of %d gaps fit into memory at once: %d passes", at_once, len(missing), passes)
        modules: dict[Site, nn.Module] = {}
        for first in range(0, len(missing), at_once):
            # What patches want whichever layers go is small and worth keeping; Gram matrices aren't.
            workspace = self.workspace if self.patch.statistics() else self.workspace.scratch()
            modules |= all_ready(self.patch.fit(workspace, missing[first : first + at_once]), self.workspace.decoder)
        for gap, some in sites.items():
            self._patches[gap] = tuple((site, modules[site]) for site in some)


def _kept(
    workspace: Workspace, patch: Fits, asked: Mapping[str, Any], compute: Callable[[], list[CandidateLoss]]
) -> list[CandidateLoss]:
    """Held-out losses from the cache, or computed."""
    held_out = workspace.held_out.hash
    key = {**workspace.key, "version": VERSION, "held_out": held_out, "patch": identity(patch), **asked}
    entry = workspace.cache.get(
        "patched_loss", key, lambda: Entry(facts={"losses": [asdict(loss) for loss in compute()]})
    )
    return [CandidateLoss(**loss) for loss in entry.facts["losses"]]


def all_ready(fitted: Iterable[Fitted], decoder: Decoder) -> tuple[tuple[Site, nn.Module], ...]:
    """Fitted operators at their sites, each `ready`."""
    return tuple((one.site, ready(one.module, decoder, one.site)) for one in fitted)


def ready(module: nn.Module, decoder: Decoder, site: Site) -> nn.Module:
    """A copy of a fitted operator in the dtype and on the device of the module that it sits on."""
    reader = decoder.reader(site.reader)
    anchor = next((parameter for parameter in reader.parameters() if not parameter.is_meta), None)
    patch = copy.deepcopy(module)
    return patch.to(decoder.input_device) if anchor is None else patch.to(anchor)
