"""What the dense model's head reads of some windows: computed once for all models that are compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from linearpatch.models.decoder import Decoder
from linearpatch.storage.cache import Cache, Entry

KIND = "dense_states"  # folder of the cache
VERSION = 1
MOST_BYTES = 2**29  # of the states of a text that are kept; those of a longer one are recomputed for each model


class DenseStates:
    """The dense model's hidden states after the final norm, batch by batch.

    Logits follow from them by the head alone, and are twenty to three hundred times as large.

    Args:
        decoder: The dense model.
        ids: `[windows, tokens]`.
        cache: Where the states are kept, for other stages and other runs; by default in memory.
        key: What identifies model and tokens there.
    """

    def __init__(
        self, decoder: Decoder, ids: Tensor, *, cache: Cache | None = None, key: Mapping[str, Any] | None = None
    ) -> None:
        self.decoder = decoder
        self.ids = ids
        self._cache = cache or Cache()
        self._key = {"version": VERSION, **(key or {})}

    @torch.inference_mode()
    def batches(self, size: int = 1) -> Iterator[Tensor]:
        """`[size, tokens, hidden_size]` in the model's dtype and on its device; computed as they are asked for.

        Args:
            size: Windows in one forward pass.
        """
        device = self.decoder.input_device
        entry = self._cache.find(KIND, self._key, remember=False)
        if entry is not None:
            for states in entry.tensors["states"].split(size):
                yield states.to(device)
            return
        kept: list[Tensor] = []
        for batch in self.ids.split(size):
            states = self.decoder.hidden_states(self.decoder.forward(batch.to(device), use_cache=False))
            if len(self.ids) * states[0].nbytes <= MOST_BYTES:
                kept.append(states.cpu())
            yield states
        if kept:
            self._cache.put(KIND, self._key, Entry({"states": torch.cat(kept)}), remember=False)
