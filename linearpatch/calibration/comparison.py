"""Fits compared on held-out tokens with simpler ones and with no patch, so that a patch never does harm there.

Candidates of one set of removed layers differ only past the first interface, and the dense model's streams before it
are kept: each costs the layers after it. All are screened on a quarter of the held-out tokens; the best of them and
the fit as it is set are measured on all, as is no patch, until it can't win. Several interfaces are compared
jointly: a candidate is one setting at all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import exp, inf, isfinite
from math import log as log_of
from typing import TYPE_CHECKING, Any

import torch

from linearpatch.calibration.candidate_edits import Repairer, ready
from linearpatch.calibration.candidate_losses import CandidateLoss, CandidateSearch
from linearpatch.choices import choice_made
from linearpatch.errors import ConfigError, NumericsError
from linearpatch.models.edit import DENSE, Edit, PlacedOperator
from linearpatch.models.modeling_linearpatch import Operator
from linearpatch.models.units import Removable, as_units, interfaces_of, plain_units
from linearpatch.registry import identity, name_of
from linearpatch.results.fields import section_of
from linearpatch.results.sections import PatchSection, SiteSection
from linearpatch.storage.cache import Entry, digest_of

if TYPE_CHECKING:
    from linearpatch.calibration.workspace import Workspace

log = logging.getLogger(__name__)

VERSION = 1  # of the losses below and of which candidates there are; raise it when either changes
AS_SET, NO_PATCH = "as set", "no patch"
WORSE_BY_NATS = 0.2  # nats by which a fit as set loses to a simpler one before that is a warning
PERPLEXITY_FACTOR = 4.0  # times the dense model's perplexity on held-out tokens: a worse model is a warning
SCREENED = 0.25  # of the held-out batches, on which every candidate is measured


@dataclass(frozen=True)
class ComparedFit:
    """A candidate that was measured.

    Attributes:
        name: `as set`, `no patch`, or what was set otherwise.
        loss: Its mean loss on the held-out tokens that it was measured on; None where that isn't finite.
        share: The share of the held-out batches that it was measured on; 1: all of them.
    """

    name: str
    loss: float | None
    share: float


@dataclass(frozen=True)
class Comparison:
    """Candidates for one set of removed layers, and which was kept.

    Attributes:
        removed: Dense indices; sublayers by their names.
        kept: Name of the candidate that is kept: of those measured on all held-out tokens, that with the lowest loss.
        loss: Its mean loss; a lower bound where `is_bound`.
        is_bound: Whether its evaluation stopped early, because another set of layers was better.
        dense_loss: The dense model's on the same tokens.
        candidates: All that were measured.
    """

    removed: tuple[int | str, ...]
    kept: str
    loss: float
    is_bound: bool
    dense_loss: float
    candidates: tuple[ComparedFit, ...]

    @property
    def candidate_loss(self) -> CandidateLoss:
        """The loss of the candidate that is kept."""
        return CandidateLoss(self.loss, self.is_bound)

    @property
    def as_set(self) -> ComparedFit:
        """The fit as it is set."""
        return next(fit for fit in self.candidates if fit.name == AS_SET)

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            **asdict(self),
            "removed": list(self.removed),
            "loss": self.loss if isfinite(self.loss) else None,
            "candidates": [asdict(fit) for fit in self.candidates],
        }

    def summary(self) -> str:
        """All losses in a line, the kept one first."""
        ranked = sorted(self.candidates, key=lambda fit: (fit.name != self.kept, fit.loss is None, fit.loss))
        parts = [
            f"{fit.name} {'not finite' if fit.loss is None else f'{fit.loss:.4f}'}"
            + ("" if fit.share == 1 else f" on {fit.share:.0%} of the tokens")
            for fit in ranked
        ]
        return f"{parts[0]} (kept) | {' | '.join(parts[1:])} | dense model {self.dense_loss:.4f}"

    def warnings(self, patch: Repairer) -> list[str]:
        """What a reader of the results must know.

        Args:
            patch: As it is set.
        """
        choice = choice_made("patch", patch)
        where = ", ".join(map(str, interfaces_of(self.removed)))
        sentences = []
        asked = inf if self.as_set.loss is None else self.as_set.loss
        if self.kept == NO_PATCH:
            sentences.append(
                f"patch={choice} at {where} would do harm: its held-out loss is {asked:.3f}, without a patch "
                f"{self.loss:.3f}. Its operators are identities in this model; patch=none saves it without them."
            )
        elif asked > self.loss + WORSE_BY_NATS:
            sentences.append(
                f"patch={choice} at {where} as set has a held-out loss of {asked:.3f}; {self.kept} has {self.loss:.3f} "
                "and is kept. A fit this much worse on held-out text had too few calibration tokens, or was dominated "
                "by a few of them. Raise calibration.num_blocks, and check the text for padding and repetition."
            )
        if self.loss > self.dense_loss + log_of(PERPLEXITY_FACTOR):
            times = exp(min(self.loss - self.dense_loss, 99))
            sentences.append(
                f"On held-out tokens the model without {where} has {times:.3g} times the dense model's perplexity "
                f"(losses {self.loss:.3f} and {self.dense_loss:.3f}), and no patch that was tried is better. No patch "
                "here can replace these layers: remove fewer (num_pruned_layers), or choose them by the loss after "
                "patching (pruner=patch_aware)."
            )
        return sentences


@dataclass(frozen=True)
class Repair:
    """What bridges the interfaces.

    Attributes:
        edit: The removed layers and the operators.
        comparison: What they were compared with; None where no tokens are held out, or nothing was to be compared.
    """

    edit: Edit
    comparison: Comparison | None = None

    def section(self, patch: Repairer) -> PatchSection:
        """What was fitted and compared, for the record; operators that one fit gave, such as refit's two, once.

        Args:
            patch: As it is set.
        """
        fits = {placed.site.interface: placed.diagnostics for placed in self.edit.operators}
        return PatchSection(
            method=name_of(patch),
            num_parameters=self.edit.num_added_parameters,
            sites=[
                section_of(SiteSection, {"start": interface.start, "end": interface.end, **diagnostics})
                for interface, diagnostics in fits.items()
            ],
            comparison=self.comparison.describe() if self.comparison else None,
            warnings=self.warnings(patch),
        )

    def warnings(self, patch: Repairer) -> list[str]:
        """What is doubtful about the fit, and about what it was compared with; each once.

        Args:
            patch: As it is set.
        """
        compared = self.comparison.warnings(patch) if self.comparison else []
        return list(dict.fromkeys([*(placed.warning for placed in self.edit.operators if placed.warning), *compared]))


def repair(workspace: Workspace, patch: Repairer, edit: Edit) -> Repair:
    """Bridge the interfaces of an edit by the candidate with the lowest held-out loss.

    Where no patch is the best, the operators do nothing: they can still be trained.

    Args:
        workspace: The dense model, its calibration tokens and those held out.
        patch: The fit as it is set; says whether it is compared, and with which simpler ones.
        edit: What is removed.

    Raises:
        ConfigError: parts of layers are removed, which leaves nothing to bridge.
        NumericsError: the fit as set has no unique solution.
    """
    if edit.narrowed and name_of(patch) != "none":
        raise ConfigError(
            f"patch={name_of(patch)} bridges interfaces, and where layers lost heads and channels there are none. Use "
            "patch=none, or remove whole layers."
        )
    patch = patch.repairer
    if not (patch.compare and workspace.has_held_out and patch.place(edit.interfaces)):
        return Repair(patch.repair(workspace, edit))
    (comparison,) = compare(workspace, patch, [edit.removed])
    log.info("candidates on held-out tokens: %s", comparison.summary())
    kept = AS_SET if comparison.kept == NO_PATCH else comparison.kept
    repaired = workspace.repaired.get((digest_of(identity(patch)), comparison.removed, kept))
    if repaired is None:
        settings: dict[str, Repairer] = {AS_SET: patch, **patch.simpler()}
        repaired = settings[kept].repair(workspace, edit)
    if comparison.kept == NO_PATCH:
        return Repair(edit.with_operators(idle(placed) for placed in repaired.operators), comparison)
    return Repair(edit.with_operators(repaired.operators).with_weights(repaired.weights), comparison)


def compare(workspace: Workspace, patch: Repairer, removals: Sequence[Sequence[Removable]]) -> list[Comparison]:
    """Compare candidates for some sets of layers; cached.

    Of the set whose kept candidate has the lowest loss, that loss is exact; others may stop early.

    Args:
        workspace: The dense model, its calibration tokens and those held out.
        patch: The fit as it is set, and what it is compared with (`Patch.compare`, `Patch.simpler`).
        removals: Sets of layers, by index, or units. What their fits need is gathered in one pass and kept.

    Raises:
        NumericsError: no candidate has a finite loss, or a fit as set has no unique solution.
    """
    sets = [plain_units(removed) for removed in removals]
    same = {**workspace.key, "version": VERSION, "held_out": workspace.held_out.hash, "patch": identity(patch)}

    def compute() -> Entry:
        contest = _Contest(workspace, patch, sets)
        comparisons = contest.result()
        for index, comparison in enumerate(comparisons):
            name = AS_SET if comparison.kept == NO_PATCH else comparison.kept
            workspace.repaired[digest_of(identity(patch)), comparison.removed, name] = contest.fits[index, name]
        return _entry(comparisons)

    entry = workspace.cache.get("comparison", {**same, "removals": sets}, compute)
    comparisons = _comparisons(entry)
    best = min(comparisons, key=lambda compared: (compared.is_bound, compared.loss))
    alone = {**same, "removals": [list(best.removed)]}
    if workspace.cache.find("comparison", alone) is None:  # the run that takes these layers needs no more
        workspace.cache.put("comparison", alone, _entry([best]))
    return comparisons


def gather(workspace: Workspace, patch: Repairer, removals: Sequence[Sequence[Removable]]) -> None:
    """Gather what `compare` will ask for several calls, from as few passes as memory allows.

    Args:
        workspace: The dense model, its calibration tokens and those held out.
        patch: The fit as it is set.
        removals: Sets of layers, of all calls.
    """
    settings = [patch, *(patch.simpler().values() if patch.compare else ())]
    _collect(workspace, settings, removals)


def _collect(workspace: Workspace, settings: Iterable[Repairer], removals: Sequence[Sequence[Any]]) -> None:
    """Gather what fits of some sets of layers ask of the calibration tokens, and of those held out."""
    sites = [(setting, setting.place(interfaces_of(removed))) for removed in removals for setting in settings]
    to_fit = [statistic for setting, places in sites for statistic in setting.interface_statistics(places)]
    workspace.collect(*to_fit, description="fit")
    checks = [statistic for setting, places in sites for statistic in setting.check_statistics(places)]
    if checks:
        workspace.on_held_out().collect(*checks, description="held-out tokens")


class _Contest:
    """Candidates of several sets of layers on the held-out batches, from a screen to those that are measured on all."""

    def __init__(self, workspace: Workspace, patch: Repairer, removals: Sequence[list[int | str]]) -> None:
        self.workspace = workspace
        self.removals = removals
        self.settings: dict[str, Repairer] = {AS_SET: patch, **(patch.simpler() if patch.compare else {})}
        self.against_none = patch.compare
        self.search: CandidateSearch = workspace.search(workspace.held_out)
        self.search.move(DENSE)
        self.losses: dict[tuple[int, str], dict[int, float]] = {}  # by set and name: summed losses of batches
        self.fits: dict[tuple[int, str], Edit] = {}  # by set and name: the fits of candidates that passed the screen
        self.models: dict[tuple[int, str], Edit] = {}  # the same, ready to run
        self.dense = 0.0  # the dense model's summed loss
        self.best = inf  # the lowest of the sums over all batches

    def result(self) -> list[Comparison]:
        """Measure all of them."""
        _collect(self.workspace, self.settings.values(), self.removals)
        for index in range(len(self.removals)):
            self._screen(index)
        contenders = sorted(self.models, key=lambda key: sum(self.losses[key].values()))
        for key in contenders:
            self._finish(key)
        if self.against_none:
            index = min(contenders, key=lambda key: (not self._is_complete(key), self._total(key)))[0]
            self._finish((index, NO_PATCH))
        self.dense = sum(self.search.batch_loss(DENSE, batch) for batch in range(len(self.search.batches)))
        comparisons = [self._comparison(index) for index in range(len(self.removals))]
        if not any(isfinite(comparison.loss) for comparison in comparisons):
            raise NumericsError(
                f"the held-out loss is not finite with any candidate for the layers {self.removals}. In fp16 large "
                "activations overflow: use model.dtype=bfloat16 or float32; otherwise check the weights."
            )
        return comparisons

    def _screen(self, index: int) -> None:
        """Measure all candidates of a set of layers on the first batches; keep the models of those that pass."""
        edit = Edit.without(as_units(self.removals[index]))
        batches = range(max(1, int(SCREENED * len(self.search.batches))))
        fits: dict[str, Edit] = {}
        for name, setting in self.settings.items():
            try:
                fits[name] = setting.repair(self.workspace, edit)
            except NumericsError:
                if name == AS_SET:
                    raise
                continue  # a simpler candidate without a solution is none
        candidates = {**fits, **({NO_PATCH: edit} if self.against_none else {})}
        for name, candidate in candidates.items():  # one at a time on the device
            model = ready(candidate, self.workspace.decoder)
            self.losses[index, name] = {batch: self.search.batch_loss(model, batch) for batch in batches}
        best = min(candidates, key=lambda name: self._total((index, name)))
        passed = dict.fromkeys([best, AS_SET])
        self.models |= {(index, name): ready(candidates[name], self.workspace.decoder) for name in passed}
        self.fits |= {(index, name): fits[name] for name in dict.fromkeys([best, AS_SET]) if name in fits}

    def _finish(self, key: tuple[int, str]) -> None:
        """Measure a candidate on the other batches, until it can't be the best."""
        index, name = key
        model = Edit.without(as_units(self.removals[index])) if name == NO_PATCH else self.models[key]
        for batch in range(len(self.search.batches)):
            if batch not in self.losses[key] and self._total(key) <= self.best:
                self.losses[key][batch] = self.search.batch_loss(model, batch)
        if self._is_complete(key):
            self.best = min(self.best, self._total(key))

    def _is_complete(self, key: tuple[int, str]) -> bool:
        return len(self.losses[key]) == len(self.search.batches)

    def _total(self, key: tuple[int, str]) -> float:
        return sum(self.losses[key].values())

    def _comparison(self, index: int) -> Comparison:
        keys = {name: (index, name) for other, name in self.losses if other == index}
        # A bound that passed the best sum is no winner; among complete ones the simplest of equals would do, too.
        kept = min(
            (name for name in keys if self._is_complete(keys[name]) or keys[name] in self.models),
            key=lambda name: (not self._is_complete(keys[name]), self._total(keys[name])),
        )
        measured = []
        for name, key in keys.items():
            loss = self._total(key) / self.search.tokens_of(self.losses[key])
            share = len(self.losses[key]) / len(self.search.batches)
            measured.append(ComparedFit(name, loss if isfinite(loss) else None, share))
        tokens = self.search.tokens_of(range(len(self.search.batches)))
        return Comparison(
            removed=tuple(self.removals[index]),
            kept=kept,
            loss=self._total(keys[kept]) / tokens,
            is_bound=not self._is_complete(keys[kept]),
            dense_loss=self.dense / tokens,
            candidates=tuple(measured),
        )


def _entry(comparisons: Iterable[Comparison]) -> Entry:
    return Entry(facts={"comparisons": [comparison.describe() for comparison in comparisons]})


def _comparisons(entry: Entry) -> list[Comparison]:
    return [
        Comparison(
            **{
                **values,
                "removed": tuple(values["removed"]),
                "candidates": tuple(ComparedFit(**candidate) for candidate in values["candidates"]),
            }
        )
        for values in entry.facts["comparisons"]
    ]


@torch.no_grad()
def idle(placed: PlacedOperator) -> PlacedOperator:
    """The same with an operator of its form that does nothing.

    Raises:
        NumericsError: the operator has no spec to build one from.
    """
    if not isinstance(placed.module, Operator):
        raise NumericsError(
            f"The operator {type(placed.module).__name__} does harm on held-out tokens, and can't be replaced by an "
            "identity: it has no spec. Use patch=none, or patch.compare=false to keep it."
        )
    return PlacedOperator(placed.site, placed.place.idle(placed.module))
