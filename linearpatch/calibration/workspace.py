"""What pruners and patches may ask about the dense model on the calibration tokens.

Everything is lazy, shared and cached: a statistic asked for twice, by two components, or by two runs is
computed once. `collect` gathers what several components need in a single pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from linearpatch.cache import Cache, Entry
from linearpatch.calibration.gradients import first_order_importance, layer_weights
from linearpatch.calibration.statistics import LayerInput, Statistic
from linearpatch.calibration.suffix import CandidateLoss, SuffixSearch
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import NumericsError
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.passes import mlp_outputs, walk
from linearpatch.progress import steps

# Versions of what this file computes; raise one when its numbers change.
REMOVAL_LOSS_VERSION = 1
IMPORTANCE_VERSION = 1
WEIGHT_NORM_VERSION = 1


class Workspace:
    """The dense model, the calibration tokens, and all that was learnt from them.

    Args:
        decoder: The dense model; never changed.
        blocks: Calibration tokens.
        cache: Where results are kept; by default in memory.
        model_key: What identifies the weights and how they compute (`models.fingerprint`).
        batch_size: Blocks in one forward pass; doesn't change results beyond rounding.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: TokenBlocks,
        *,
        cache: Cache | None = None,
        model_key: Mapping[str, Any] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.decoder = decoder
        self.blocks = blocks
        self._cache = cache or Cache()
        self._key = {"model": dict(model_key or {}), "tokens": blocks.hash}
        self._batches = [batch.to(decoder.input_device) for batch in blocks.ids.split(batch_size)]
        self._search: SuffixSearch | None = None

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

        The pass ends at the deepest stream that any of them needs.

        Raises:
            NumericsError: a result is not finite.
        """
        missing = self._missing(statistics)
        if missing:
            # Another job may be on the same pass; one on other statistics isn't waited for.
            same = {**self._key, "statistics": [self._statistic_key(wanted) for wanted in missing]}
            with self._cache.locked("pass", same):
                missing = self._missing(statistics)
                if missing:
                    self._run_pass(missing, description)
        entries = [self._cache.find("statistic", self._statistic_key(wanted)) for wanted in statistics]
        return [entry.tensors for entry in entries if entry is not None]

    def removal_losses(
        self, removed: Sequence[int], candidates: Sequence[int], *, stop_early: bool = False
    ) -> dict[int, CandidateLoss]:
        """Calibration loss of the model without `removed` and one candidate more.

        Args:
            removed: Layers already gone, in the order in which they went.
            candidates: Layers to try, in the order in which to try them.
            stop_early: Give up on a candidate once it can't be the best; its loss is then a bound.

        Raises:
            NumericsError: no candidate has a finite loss.
        """
        key = {
            **self._key,
            "version": REMOVAL_LOSS_VERSION,
            "removed": sorted(removed),
            "candidates": sorted(candidates),
        }
        exhaustive = self._cache.find("removal_loss", {**key, "stop_early": False})
        entry = exhaustive or self._cache.get(
            "removal_loss",
            {**key, "stop_early": stop_early},
            lambda: self._measure_removals(removed, candidates, stop_early),
        )
        return {int(layer): CandidateLoss(**value) for layer, value in entry.facts["losses"].items()}

    @property
    def layer_forwards(self) -> int:
        """Layers run by the search behind `removal_losses` so far, each counted once a batch."""
        return self._search.layer_forwards if self._search else 0

    def release(self) -> None:
        """Drop the streams kept for `removal_losses`; the next call would compute them again."""
        self._search = None

    def importance(self) -> Tensor:
        """First-order (Taylor) importance of each layer, `[L]`; see `first_order_importance`."""

        def compute() -> Entry:
            total = len(self._batches) * self.num_layers
            with steps("gradients", total) as on_step:
                values = first_order_importance(self.decoder, self._batches, on_step=on_step)
            return Entry({"importance": _finite(values, "the first-order importance", "layer")})

        # Batches decide where absolute values are taken, so their size is part of the key.
        sizes = [len(batch) for batch in self._batches]
        key = {**self._key, "version": IMPORTANCE_VERSION, "batches": sizes}
        return self._cache.get("importance", key, compute).tensors["importance"]

    def weight_norms(self, power: float) -> Tensor:
        """Σ|W|^power over each layer's weights, `[L]` in fp64; needs no tokens."""

        def compute() -> Entry:
            norms = [
                sum(w.detach().float().abs().pow(power).sum(dtype=torch.float64).cpu() for w in layer_weights(layer))
                for layer in self.decoder.layers
            ]
            return Entry({"norm": _finite(torch.stack([torch.as_tensor(n) for n in norms]), "the weights", "layer")})

        key = {"model": self._key["model"], "version": WEIGHT_NORM_VERSION, "power": power}
        return self._cache.get("weight_norm", key, compute).tensors["norm"]

    def _missing(self, statistics: Sequence[Statistic]) -> list[Statistic]:
        return [s for s in dict.fromkeys(statistics) if self._cache.find("statistic", self._statistic_key(s)) is None]

    def _run_pass(self, statistics: Sequence[Statistic], description: str) -> None:
        accumulators = [statistic.start(self.num_layers) for statistic in statistics]
        deepest = max(statistic.deepest(self.num_layers) for statistic in statistics)

        mlp_layers = {layer for statistic in statistics for layer in statistic.mlp_layers()}

        def visit(index: int, hidden: Tensor, _: LayerCall) -> None:
            stream = LayerInput(index, hidden, added.get(index - 1))
            for accumulator in accumulators:
                accumulator.observe(stream)

        with steps(description, len(self._batches)) as on_step, mlp_outputs(self.decoder, mlp_layers) as added:
            for batch in self._batches:
                walk(self.decoder, batch, visit, stop=deepest)
                on_step()
        for statistic, accumulator in zip(statistics, accumulators, strict=True):
            tensors = accumulator.result()
            for name, tensor in tensors.items():
                _finite(tensor, f"{type(statistic).__name__} ({name})", "entry")
            self._cache.put("statistic", self._statistic_key(statistic), Entry(tensors))

    def _statistic_key(self, statistic: Statistic) -> dict[str, Any]:
        kind = f"{type(statistic).__module__}.{type(statistic).__qualname__}"
        return {**self._key, "statistic": kind, "version": statistic.version, **asdict(statistic)}  # type: ignore[call-overload]

    def _measure_removals(self, removed: Sequence[int], candidates: Sequence[int], stop_early: bool) -> Entry:
        search = self._search_without(removed)
        with steps(f"loss without one of {len(candidates)} layers", len(candidates)) as on_step:
            losses = search.losses(candidates, stop_early=stop_early, on_step=on_step)
        measured = torch.tensor([candidate.loss for candidate in losses.values()])
        if not measured.isfinite().any():
            raise NumericsError(_not_finite("the calibration loss", f"each of the layers {list(candidates)} removed"))
        return Entry(facts={"losses": {str(layer): asdict(loss) for layer, loss in losses.items()}})

    def _search_without(self, removed: Sequence[int]) -> SuffixSearch:
        """The search at the state `removed`; carried on from the last call where that leads there."""
        search = self._search
        if search is None or not set(search.alive) >= set(range(self.num_layers)) - set(removed):
            search = SuffixSearch(self.decoder, self._batches)
        for layer in removed:
            if layer in search.alive:
                search.remove(layer)
        self._search = search
        return search


def _finite(values: Tensor, what: str, unit: str) -> Tensor:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        raise NumericsError(_not_finite(what, f"{unit} {bad[0].tolist()} ({len(bad)} of {values.numel()})"))
    return values


def _not_finite(what: str, where: str) -> str:
    return (
        f"{what} is not finite at {where}. In fp16 large activations overflow: use model.dtype=bfloat16 or "
        "float32; otherwise check that the weights are intact."
    )
