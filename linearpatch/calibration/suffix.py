"""The loss of the model without one more layer, at half the price.

To ask which layer hurts least, every candidate is removed in turn and the loss measured. All that comes
before a candidate is the same for all of them, so the stream that enters each layer is kept and only the
layers after the candidate run: (A − 1)/2 of them on average instead of A − 1 (the greedy
search of SLEB, algorithm 1). A candidate whose summed loss passes the best total so far can't win and stops
early; negative log-likelihoods are never negative, so that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.loss import stream_nll
from linearpatch.models.passes import record


@dataclass(frozen=True)
class CandidateLoss:
    """Mean next-token loss without a layer; a lower bound of it where the evaluation stopped early."""

    loss: float
    is_bound: bool = False


class SuffixSearch:
    """The model without the layers removed so far, and the stream each remaining layer reads.

    Memory: one stream per remaining layer for every calibration token, in the model's dtype.

    Attributes:
        layer_forwards: Layers run so far, each counted once per batch.
    """

    def __init__(self, decoder: Decoder, batches: Sequence[Tensor]) -> None:
        self.decoder = decoder
        self.batches = batches
        self.alive = list(range(decoder.num_layers))
        self.layer_forwards = 0
        self._streams: list[dict[int, Tensor]] = []
        self._calls: list[dict[int, LayerCall]] = []
        for batch in batches:
            recording = record(decoder, batch)
            self._streams.append({layer: recording.streams[layer] for layer in self.alive})
            self._calls.append(recording.calls)
            self.layer_forwards += decoder.num_layers

    @torch.no_grad()
    def remove(self, layer: int) -> None:
        """Take a layer out for good; the streams after it are computed anew."""
        position = self.alive.index(layer)
        after = self.alive[position + 1 :]
        for streams, calls in zip(self._streams, self._calls, strict=True):
            hidden = streams.pop(layer)
            for index in after:
                streams[index] = hidden
                if index != after[-1]:
                    hidden = self._run(hidden, calls, [index])
        self.alive.remove(layer)

    @torch.no_grad()
    def losses(
        self,
        candidates: Sequence[int],
        *,
        stop_early: bool,
        on_step: Callable[[], None] = lambda: None,
    ) -> dict[int, CandidateLoss]:
        """Mean loss without each candidate.

        Args:
            candidates: Layers still alive, in the order in which they are tried.
            stop_early: End a candidate's evaluation once it can't be the best any more. The best
                candidate and its loss are the same either way.
            on_step: Called after each candidate.
        """
        best = inf
        all_tokens = sum(batch[:, 1:].numel() for batch in self.batches)
        results: dict[int, CandidateLoss] = {}
        for candidate in candidates:
            total, stopped = 0.0, False
            after = self.alive[self.alive.index(candidate) + 1 :]
            for batch, streams, calls in zip(self.batches, self._streams, self._calls, strict=True):
                if stop_early and total > best:
                    stopped = True
                    break
                hidden = self._run(streams[candidate], calls, after)
                total += stream_nll(self.decoder, hidden, batch).sum(dtype=torch.float64).item()
            total = total if isfinite(total) else inf  # a broken model is the worst candidate, not an error
            # An early stop divides by all tokens, too: the tokens not seen cost at least nothing.
            results[candidate] = CandidateLoss(total / all_tokens, is_bound=stopped)
            best = min(best, total) if not stopped else best
            on_step()
        return results

    def _run(self, hidden: Tensor, calls: dict[int, LayerCall], layers: Sequence[int]) -> Tensor:
        self.layer_forwards += len(layers)
        return self.decoder.run_layers(hidden, calls, layers)
