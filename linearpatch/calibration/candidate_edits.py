"""Repaired edits by the dozen: what a search over patched models tries.

The operators at an interface depend only on where it begins and ends, so each is fitted once, and all that a step of
a search comes across are fitted together, from one pass over the calibration tokens. Their Gram matrices stay in
memory only until they are solved; where a model is so wide that they don't fit at once, the pass is repeated for
each part of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from linearpatch.calibration.candidate_losses import CandidateLoss
from linearpatch.calibration.finite import require_finite
from linearpatch.calibration.race import Standing, race
from linearpatch.calibration.statistics import Statistic
from linearpatch.calibration.sums_in_memory import parts_that_fit
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import DENSE, Edit, PlacedOperator, Site
from linearpatch.models.quantised import is_packed
from linearpatch.models.units import Interface, Removable, as_units, interfaces_of, plain_units
from linearpatch.registry import identity
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Entry

if TYPE_CHECKING:
    from linearpatch.calibration.workspace import Workspace

log = logging.getLogger(__name__)

VERSION = 2  # of the losses below; raise it when their numbers change
RACE_VERSION = 1  # of a race's standings


class Repairer(Protocol):
    """What a search and a comparison need of a patch."""

    @property
    def repairer(self) -> Repairer:
        """What repairs, as its settings say: itself, or a wrapper around it."""

    @property
    def compare(self) -> bool:
        """Whether it is compared with no patch and with simpler fits."""

    def simpler(self) -> Mapping[str, Repairer]:
        """Simpler fits that it is compared with, by what they set otherwise."""

    def place(self, interfaces: Sequence[Interface]) -> list[Site]:
        """The sites at some interfaces."""

    def statistics(self) -> Sequence[Statistic]:
        """Statistics wanted whichever layers are removed."""

    def interface_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """Statistics that `fit` asks for at some sites."""

    def check_statistics(self, sites: Sequence[Site]) -> Sequence[Statistic]:
        """Statistics of held-out tokens that `fit` asks for at some sites."""

    def draft(self) -> Repairer:
        """What stands in for it where many interfaces are fitted."""

    def fit(self, workspace: Workspace, sites: Sequence[Site]) -> Sequence[PlacedOperator]:
        """Fit one operator for each site."""

    def repair(self, workspace: Workspace, edit: Edit) -> Edit:
        """The edit with an operator at each of its interfaces."""


class CandidateEdits:
    """Repaired edits that a search comes across; each interface is fitted once.

    Args:
        workspace: The dense model and its calibration tokens.
        patch: Repairs them: a patch whose fit at one interface doesn't depend on others.
    """

    def __init__(self, workspace: Workspace, patch: Repairer) -> None:
        self.workspace = workspace
        self.patch = patch
        self._operators: dict[Interface, tuple[PlacedOperator, ...]] = {}

    def edits(self, removals: Sequence[Sequence[Removable]]) -> list[Edit]:
        """The repaired edit that removes these layers or sublayers, for each of some sets of them."""
        interfaces = [interfaces_of(removed) for removed in removals]
        self._fit(
            dict.fromkeys(
                interface for of_edit in interfaces for interface in of_edit if interface not in self._operators
            )
        )
        return [
            Edit.without(as_units(removed)).with_operators(
                placed for interface in of_edit for placed in self._operators[interface]
            )
            for removed, of_edit in zip(removals, interfaces, strict=True)
        ]

    def forget(self) -> None:
        """Drop what was fitted."""
        self._operators.clear()

    def losses(
        self,
        removed: Sequence[Removable],
        removals: Sequence[Sequence[Removable]],
        *,
        survivors: int | None = None,
    ) -> list[CandidateLoss]:
        """Held-out loss of the repaired model without each of some sets of layers or sublayers; cached.

        Args:
            removed: Those removed in all of them: the streams of that model, repaired, are kept.
            removals: Sets of layers, by index, or units.
            survivors: Only so many of the best need exact losses; others may be lower bounds.

        Raises:
            ConfigError: no calibration tokens are held out.
            NumericsError: no candidate has a finite loss.
        """
        workspace = self.workspace
        sets = [sorted(as_units(candidate)) for candidate in removals]

        def compute() -> list[CandidateLoss]:
            base, *edits = self.edits([removed, *sets])
            return workspace.losses(workspace.held_out, base, edits, survivors=survivors)

        names = [plain_units(candidate) for candidate in sets]
        key = {"removed": plain_units(removed), "removals": names, "survivors": survivors}
        return _kept(workspace, self.patch, key, compute)

    def race(self, removals: Sequence[Sequence[Removable]], *, noise: float) -> list[Standing]:
        """How the repaired models without each of some sets of layers stand to the best of them; cached.

        Args:
            removals: Sets of layers, by index, or units.
            noise: Standard errors by which a candidate drops out (`calibration.race`).

        Raises:
            ConfigError: no calibration tokens are held out.
            NumericsError: no candidate has a finite loss.
        """
        workspace = self.workspace
        sets = [sorted(as_units(candidate)) for candidate in removals]

        def compute() -> Entry:
            edits = self.edits(sets)
            search = workspace.search(workspace.held_out)
            search.move(DENSE)
            with steps(f"race of {len(edits)} candidates", len(edits)) as on_step:
                standings = race(search, edits, noise=noise, on_step=on_step)
            require_finite([standing.loss for standing in standings], [plain_units(units) for units in sets])
            return Entry(facts={"standings": [asdict(standing) for standing in standings]})

        entry = workspace.cache.get("patched_race", self._race_key(sets, noise), compute)
        return [Standing(**standing) for standing in entry.facts["standings"]]

    def is_raced(self, removals: Sequence[Sequence[Removable]], *, noise: float) -> bool:
        """Whether the cache holds the result of a race."""
        return self.workspace.cache.find("patched_race", self._race_key(removals, noise)) is not None

    def _race_key(self, removals: Sequence[Sequence[Removable]], noise: float) -> dict[str, Any]:
        names = [plain_units(sorted(as_units(candidate))) for candidate in removals]
        return {**_same(self.workspace, self.patch), "removals": names, "noise": noise, "race": RACE_VERSION}

    def _fit(self, interfaces: Iterable[Interface]) -> None:
        sites = {interface: self.patch.place([interface]) for interface in interfaces}
        missing = [site for at_one in sites.values() for site in at_one]
        decoder = self.workspace.decoder

        def num_bytes(site: Site) -> int:
            return sum(statistic.sum_bytes(decoder) for statistic in self.patch.interface_statistics([site]))

        fitted: dict[Site, PlacedOperator] = {}
        for of_part in parts_that_fit(missing, num_bytes, decoder.input_device):
            # What patches want whichever layers are removed is small and worth keeping; Gram matrices aren't.
            workspace = self.workspace if self.patch.statistics() else self.workspace.scratch()
            part = self.patch.fit(workspace, of_part)
            part = ready(Edit(operators=tuple(part)), self.workspace.decoder).operators
            fitted |= {placed.site: placed for placed in part}
        for interface, at_one in sites.items():
            self._operators[interface] = tuple(fitted[site] for site in at_one)


def _kept(
    workspace: Workspace, patch: Repairer, asked: Mapping[str, Any], compute: Callable[[], list[CandidateLoss]]
) -> list[CandidateLoss]:
    """Held-out losses from the cache, or computed."""
    key = {**_same(workspace, patch), **asked}
    entry = workspace.cache.get(
        "patched_loss", key, lambda: Entry(facts={"losses": [asdict(loss) for loss in compute()]})
    )
    return [CandidateLoss(**loss) for loss in entry.facts["losses"]]


def _same(workspace: Workspace, patch: Repairer) -> dict[str, Any]:
    """What decides held-out losses beside the candidates."""
    return {**workspace.key, "version": VERSION, "held_out": workspace.held_out.hash, "patch": identity(patch)}


def ready(edit: Edit, decoder: Decoder) -> Edit:
    """The edit with copies of what was fitted, ready to run beside the dense model's layers.

    Operators are in the dtype of the layers that they run with, changed weights in their own.
    """
    weights = {name: copy.deepcopy(change).to(decoder.input_device) for name, change in edit.weights.items()}
    return edit.with_modules([_beside(placed, decoder) for placed in edit.operators]).with_weights(weights)


def _beside(placed: PlacedOperator, decoder: Decoder) -> nn.Module:
    layer = decoder.reader(placed.place.runs_with(()))
    anchor = next((weight for weight in layer.parameters() if not weight.is_meta and not is_packed(weight)), None)
    module = copy.deepcopy(placed.module)
    return module.to(decoder.input_device) if anchor is None else module.to(anchor)
