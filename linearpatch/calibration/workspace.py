"""What pruners and patches may ask about the dense model on the calibration tokens.

Everything is lazy, shared and cached: a statistic asked for twice, by two components, or by two runs is
computed once. `collect` gathers what several components need in a single pass.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from linearpatch.calibration.candidate_edits import CandidateEdits, Repairer
from linearpatch.calibration.candidate_losses import NLL, CandidateLoss, CandidateSearch
from linearpatch.calibration.comparison import Comparison, compare
from linearpatch.calibration.finite import require_finite
from linearpatch.calibration.listening import Listeners
from linearpatch.calibration.questions import Questions
from linearpatch.calibration.statistics import LayerInput, Statistic
from linearpatch.calibration.sums_in_memory import parts_that_fit
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.passes import mlp_outputs, projection_inputs, walk
from linearpatch.models.routing import routed_tokens
from linearpatch.models.sublayers import MLP
from linearpatch.models.units import Removable, Unit, as_units, plain_units, sublayer_before
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Cache, Entry

log = logging.getLogger(__name__)

# Versions of what this file computes; raise one when its numbers change.
REMOVAL_LOSS_VERSION = 3


class Workspace:
    """The dense model, the calibration tokens, and all that was learnt from them.

    Args:
        decoder: The dense model; never changed.
        blocks: Calibration tokens.
        held_out: Calibration tokens that share nothing with `blocks`, for those who choose by a loss.
        patch: Repairs interfaces, for pruners that look at patched models.
        cache: Where results are kept; by default in memory.
        model_key: What identifies the weights and how they compute (`models.fingerprint`).
        batch_size: Blocks in one forward pass; doesn't change results beyond rounding.
        offload_streams: Whether the streams of searches are kept in CPU memory; None: as far as the device has no room
            for them (`CandidateSearch`).
        base: What lies before the interfaces that are to be repaired.
        questions: By which pruners may judge models.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: TokenBlocks,
        *,
        held_out: TokenBlocks | None = None,
        patch: Repairer | None = None,
        cache: Cache | None = None,
        model_key: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        offload_streams: bool | None = None,
        base: Edit = DENSE,
        questions: Questions | None = None,
    ) -> None:
        self.decoder = decoder
        self.blocks = blocks
        self.cache = cache or Cache()
        self.batch_size = batch_size
        self.offload_streams = offload_streams
        self.base = base
        self.key: dict[str, Any] = {"model": dict(model_key or {}), "tokens": blocks.hash}
        self._held_out = held_out
        self._patch = patch.repairer if patch else None
        self.questions = questions
        self._candidate_edits: CandidateEdits | None = None
        self._batches = self._on_device(blocks)
        self._searches: dict[str, CandidateSearch] = {}
        self._passes_keep_streams = False  # whether a pass over the tokens makes a search that keeps the streams
        self.is_shared = False  # whether other runs will ask, so that `release` drops nothing
        self.repaired: dict[tuple[str, tuple[int | str, ...], str], Edit] = {}  # fits that comparisons kept

    def scratch(self) -> Workspace:
        """The same with a cache of its own, in memory, for what isn't worth keeping."""
        return Workspace(
            self.decoder,
            self.blocks,
            held_out=self._held_out,
            batch_size=self.batch_size,
            offload_streams=self.offload_streams,
        )

    @property
    def candidate_edits(self) -> CandidateEdits:
        """Repaired edits by the dozen, for pruners that look at them.

        Raises:
            ConfigError: the workspace doesn't know how interfaces will be bridged.
        """
        self._candidate_edits = self._candidate_edits or CandidateEdits(self, self.patch.draft())
        return self._candidate_edits

    def comparisons(self, removals: Sequence[Sequence[Removable]]) -> list[Comparison]:
        """Held-out losses without each of some sets of units: of the patch itself, simpler ones and none; cached.

        Raises:
            ConfigError: no tokens are held out, or the workspace doesn't know how interfaces will be bridged.
        """
        return compare(self, self.patch, removals)

    def part(self, share: float, *, held_out: float = 1.0) -> Workspace:
        """The same with the first blocks alone, at least one of each kind.

        Args:
            share: Of the blocks that are fitted on.
            held_out: Of those held out.
        """
        if share == held_out == 1:
            return self
        kept = self._held_out and self._held_out.part(held_out)
        part = self._on(self.blocks.part(share), held_out=kept, patch=self._patch)
        part._searches = self._searches  # so that the streams of held-out tokens are recorded once
        return part

    def on_held_out(self, *, keep_streams: bool = False) -> Workspace:
        """The same on the held-out tokens, for statistics of them; streams that a search keeps aren't run again.

        Args:
            keep_streams: A search of them will follow, so that a pass keeps the streams for it.

        Raises:
            ConfigError: there are none.
        """
        workspace = self._on(self.held_out)
        workspace._searches = self._searches
        workspace._passes_keep_streams = keep_streams
        return workspace

    def _on(
        self, blocks: TokenBlocks, *, held_out: TokenBlocks | None = None, patch: Repairer | None = None
    ) -> Workspace:
        """The same model and cache with other tokens."""
        return Workspace(
            self.decoder,
            blocks,
            held_out=held_out,
            patch=patch,
            cache=self.cache,
            model_key=self.key["model"],
            batch_size=self.batch_size,
            offload_streams=self.offload_streams,
            base=self.base,
        )

    @property
    def patch(self) -> Repairer:
        """How interfaces will be bridged.

        Raises:
            ConfigError: the workspace doesn't know.
        """
        if self._patch is None:
            raise ConfigError("This workspace has no patch, and the pruner measures patched models. Set patch=…")
        return self._patch

    @property
    def batches(self) -> list[Tensor]:
        """The tokens as they are run, each `[blocks, tokens]` on the model's device."""
        return self._batches

    @property
    def num_layers(self) -> int:
        """Number of layers of the dense model."""
        return self.decoder.num_layers

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.decoder.hidden_size

    def statistic(self, statistic: Statistic) -> dict[str, Tensor]:
        """The result of one statistic, `collect`ed on demand."""
        return self.collect(statistic)[0]

    def collect(self, *statistics: Statistic, description: str = "statistics") -> list[dict[str, Tensor]]:
        """Results of several statistics, those not known yet from one pass over the tokens.

        The pass ends at the deepest stream that any of them needs. It is repeated for a part of them at a time where
        their sums don't fit into memory together.

        Raises:
            NumericsError: a result is not finite.
        """
        missing = self._missing(statistics)
        if missing:
            # Another job may be on the same pass; one on other statistics isn't waited for.
            same = {**self.key, "statistics": [self._statistic_key(statistic) for statistic in missing]}
            with self.cache.locked("pass", same):
                missing = self._missing(statistics)
                if missing:
                    self._run_passes(missing, description)
        entries = [self.cache.find("statistic", self._statistic_key(statistic)) for statistic in statistics]
        return [entry.tensors for entry in entries if entry is not None]

    def removal_losses(
        self,
        removed: Sequence[Removable],
        candidates: Sequence[Removable],
        *,
        stop_early: bool = False,
        objective: str = NLL,
    ) -> dict[Removable, CandidateLoss]:
        """Calibration loss of the model without `removed` and one candidate more.

        Args:
            removed: Layers, by index, or units removed already, in the order of removal.
            candidates: Those to try.
            stop_early: Give up on a candidate once it can't be the best; its loss is then a bound.
            objective: What a loss is; see `CandidateSearch`.

        Raises:
            NumericsError: no candidate has a finite loss.
        """
        key = {
            **self.key,
            "version": REMOVAL_LOSS_VERSION,
            "removed": plain_units(removed),
            "candidates": plain_units(candidates),
            **({} if objective == NLL else {"objective": objective}),
        }
        by_name = {str(candidate): candidate for candidate in candidates}

        def compute() -> Entry:
            survivors = 1 if stop_early else None
            losses = self._losses_without(removed, candidates, survivors=survivors, objective=objective)
            return Entry(facts={"losses": {str(c): asdict(loss) for c, loss in zip(candidates, losses, strict=True)}})

        exhaustive = self.cache.find("removal_loss", {**key, "stop_early": False})
        entry = exhaustive or self.cache.get("removal_loss", {**key, "stop_early": stop_early}, compute)
        return {by_name[name]: CandidateLoss(**value) for name, value in entry.facts["losses"].items()}

    @property
    def has_held_out(self) -> bool:
        """Whether any calibration tokens are held out."""
        return self._held_out is not None

    @property
    def held_out(self) -> TokenBlocks:
        """Calibration tokens that nothing is fitted on.

        Raises:
            ConfigError: there are none.
        """
        if self._held_out is None:
            raise ConfigError(
                "No calibration tokens are held out, and a choice by loss needs some that nothing was fitted on. "
                "Set calibration.held_out_blocks, or give fewer blocks or a longer text."
            )
        return self._held_out

    def losses(
        self,
        blocks: TokenBlocks,
        base: Edit,
        edits: Sequence[Edit],
        *,
        survivors: int | None = None,
        objective: str = NLL,
    ) -> list[CandidateLoss]:
        """Losses of edits that are the same as `base` up to some layer; only what follows is run. Not cached.

        Args:
            blocks: The tokens: those for calibration, or `held_out`.
            base: Streams of this edited model are kept for the next call.
            edits: Candidates.
            survivors: Only so many of the best need exact losses (`CandidateSearch.losses`).
            objective: What a loss is; see `CandidateSearch`.

        Raises:
            NumericsError: no candidate has a finite loss.
        """
        search = self.search(blocks, objective)
        search.move(base)
        with steps(f"losses of {len(edits)} candidates", len(edits)) as on_step:
            losses = search.losses(edits, survivors=survivors, on_step=on_step)
        require_finite([loss.loss for loss in losses], [edit.describe_removed() for edit in edits])
        return losses

    def search(self, blocks: TokenBlocks, objective: str = NLL) -> CandidateSearch:
        """The streams that are kept for losses on some tokens; recorded at the first call."""
        name = blocks.hash if objective == NLL else f"{blocks.hash} {objective}"
        if name not in self._searches:
            self._searches[name] = CandidateSearch(
                self.decoder, self._on_device(blocks), offload=self.offload_streams, objective=objective
            )
        return self._searches[name]

    def _losses_without(
        self,
        removed: Sequence[Removable],
        candidates: Sequence[Removable],
        *,
        survivors: int | None,
        objective: str,
    ) -> list[CandidateLoss]:
        base = Edit.without(as_units(removed))
        edits = [base.without_units(as_units([candidate])) for candidate in candidates]
        return self.losses(self.blocks, base, edits, survivors=survivors, objective=objective)

    @property
    def layer_forwards(self) -> int:
        """Layers run for `losses` so far, each counted once a batch."""
        return sum(search.layer_forwards for search in self._searches.values())

    def release(self) -> None:
        """Drop the streams kept for `losses` and the candidate edits, unless other runs will ask for them."""
        if not self.is_shared:
            self._searches.clear()
            self._candidate_edits = None

    def _missing(self, statistics: Sequence[Statistic]) -> list[Statistic]:
        return [s for s in dict.fromkeys(statistics) if self.cache.find("statistic", self._statistic_key(s)) is None]

    def _run_passes(self, statistics: Sequence[Statistic], description: str) -> None:
        """One pass for all of them, or several where their sums don't fit into memory together."""
        parts = parts_that_fit(
            statistics, lambda statistic: statistic.sum_bytes(self.decoder), self.decoder.input_device
        )
        if len(parts) > 1:
            log.info("%s: sums of products don't fit into memory together: %d passes", description, len(parts))
        for part in parts:
            self._run_pass(part, description)

    def _run_pass(self, statistics: Sequence[Statistic], description: str) -> None:
        listeners = Listeners(statistics, self.num_layers)
        search = self.search(self.blocks) if self._passes_keep_streams else self._searches.get(self.blocks.hash)
        if search is not None and search.is_dense and listeners.need_streams_alone:
            for number in range(len(search.batches)):
                for index, hidden in enumerate(search.streams(number)):
                    listeners.observe(LayerInput(index, hidden))
        else:
            self._walk(listeners, description)
        for statistic, tensors in listeners.results():
            self.cache.put("statistic", self._statistic_key(statistic), Entry(tensors))

    def _walk(self, listeners: Listeners, description: str) -> None:
        def visit(index: float, hidden: Tensor, _: LayerCall) -> None:
            before = sublayer_before(index)
            output = added.get(before.layer) if before.part == MLP else None
            stream = replaced.get(index) or LayerInput(index, hidden, output, read.get(before))
            stream.routed = routed.get(before.layer) if before.part == MLP else None
            listeners.observe(stream)

        with (
            steps(description, len(self._batches)) as on_step,
            mlp_outputs(self.decoder, listeners.mlp_layers) as added,
            projection_inputs(self.decoder, listeners.projections) as read,
            routed_tokens(self.decoder, listeners.expert_layers) as routed,
        ):
            for batch in self._batches:
                replaced = self._replaced(batch, listeners.mlp_layers, listeners.projections)
                walk(self.decoder, batch, visit, stop=listeners.deepest, between=listeners.between)
                on_step()

    def _replaced(
        self, batch: Tensor, mlp_layers: Collection[int], projections: Collection[Unit]
    ) -> dict[float, LayerInput]:
        """Streams that statistics shall see in place of the model's own, by layer."""
        return {}

    def _statistic_key(self, statistic: Statistic) -> dict[str, Any]:
        kind = f"{type(statistic).__module__}.{type(statistic).__qualname__}"
        return {**self.key, "statistic": kind, "version": statistic.version, **statistic.identity()}

    def _on_device(self, blocks: TokenBlocks) -> list[Tensor]:
        return [batch.to(self.decoder.input_device) for batch in blocks.ids.split(self.batch_size)]
