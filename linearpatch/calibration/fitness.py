"""How fit whole sets of removed layers are, on a part of the tokens or on all: the loss, or the divergence from dense.

Tokens are cut into parts, so that many sets are looked at on little text and few on all of it. What a part says of a
set is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from linearpatch.calibration.candidate_losses import CandidateSearch
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.loss import compare_logits, logit_rows

Layers = tuple[int, ...]
MEASURES = ("divergence", "loss")


class Fitness:
    """Means over tokens, lower is fitter.

    Args:
        decoder: The dense model.
        ids: `[blocks, tokens]`.
        edits: Makes the models of sets of layers.
        measure: `divergence` (KL from the dense model) or `loss` (of the next token).
        parts: So many parts of nearly equal size; at most one for each block.
        batch_size: Blocks in one forward pass.
        offload: Whether streams are kept in CPU memory (`CandidateSearch`).

    Attributes:
        num_parts: Parts that there are.
    """

    def __init__(
        self,
        decoder: Decoder,
        ids: Tensor,
        edits: Callable[[Sequence[Layers]], Sequence[Edit]],
        *,
        measure: str,
        parts: int,
        batch_size: int = 1,
        offload: bool | None = None,
    ) -> None:
        self.num_parts = min(parts, len(ids))
        batches: list[Tensor] = []
        self._batches_of: list[list[int]] = []
        for part in ids.tensor_split(self.num_parts):
            cut = [batch.to(decoder.input_device) for batch in part.split(batch_size)]
            self._batches_of.append(list(range(len(batches), len(batches) + len(cut))))
            batches += cut
        self._decoder = decoder
        self._edits = edits
        self._measure = measure
        self._search = CandidateSearch(decoder, batches, offload=offload)
        is_divergence = measure == "divergence"
        self._dense = [self._search.last_stream(DENSE, index) for index in range(len(batches)) if is_divergence]
        self._known: dict[tuple[Layers, int], float] = {}  # sums over tokens
        self._tokens = [sum(self._count(batches[index]) for index in part) for part in self._batches_of]

    @property
    def layer_forwards(self) -> int:
        """Layers run so far, each counted once a batch."""
        return self._search.layer_forwards

    def set_base(self, layers: Layers) -> None:
        """Keep the streams of a set's model, so that sets like it cost only what differs."""
        self._search.move(self._edits([layers])[0])

    def of(self, sets: Sequence[Layers], parts: Collection[int]) -> list[float]:
        """The mean of each set over the tokens of some parts."""
        missing = [layers for layers in sets if any((layers, part) not in self._known for part in parts)]
        for layers, edit in zip(missing, self._edits(missing) if missing else (), strict=True):
            for part in parts:
                if (layers, part) not in self._known:
                    self._known[layers, part] = sum(self._sum(edit, index) for index in self._batches_of[part])
        tokens = sum(self._tokens[part] for part in parts)
        return [sum(self._known[layers, part] for part in parts) / tokens for layers in sets]

    def _count(self, batch: Tensor) -> int:
        """Tokens of a batch that count: every position has a divergence, and all but the last predict a token."""
        return batch.numel() if self._measure == "divergence" else batch[:, 1:].numel()

    def _sum(self, edit: Edit, index: int) -> float:
        """Summed over the tokens of a batch; infinite where that isn't finite, which is the worst and no error."""
        value = self._divergence(edit, index) if self._measure == "divergence" else self._search.batch_loss(edit, index)
        return value if isfinite(value) else inf

    @torch.no_grad()
    def _divergence(self, edit: Edit, index: int) -> float:
        streams = (self._dense[index], self._search.last_stream(edit, index))
        normed = [self._decoder.final_norm(stream).flatten(0, 1) for stream in streams]
        rows = max(1, logit_rows(self._decoder, normed[0].device) // 2)  # the logits of two models
        total = 0.0
        for chunks in zip(*(states.split(rows) for states in normed), strict=True):
            expected, actual = (self._decoder.logits(chunk).float() for chunk in chunks)
            total += compare_logits(expected, actual)[0].sum(dtype=torch.float64).item()
        return total
