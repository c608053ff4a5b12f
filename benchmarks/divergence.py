"""The divergence from the dense model, against the forward passes with head of both models that it needs."""

from __future__ import annotations

import torch

from benchmarks.measure import Claim, embedded_model, text_blocks, time_ratio
from linearpatch.evaluation.dense_states import DenseStates
from linearpatch.evaluation.divergence import divergence_from_dense
from linearpatch.models.edit import Edit
from linearpatch.models.units import as_units

BLOCKS, LENGTH = 1, 1024
REMOVED = range(12, 19)
REPEATS = 5


def claims() -> list[Claim]:
    """Time at most 1.1 × both passes, and 0.8 × for models after the first, as the dense model doesn't run again."""
    model = embedded_model()
    dense, ids = model.decoder, text_blocks(model, BLOCKS, LENGTH).ids
    pruned = Edit.without(as_units(REMOVED)).decoder(dense)

    @torch.no_grad()
    def forward() -> None:
        for decoder in (dense, pruned):
            for batch in ids.to(decoder.input_device).split(1):
                decoder.logits(decoder.hidden_states(decoder.forward(batch, use_cache=False)))

    first, first_s, both_s = time_ratio(
        lambda: divergence_from_dense(DenseStates(dense, ids), pruned), forward, repeats=REPEATS
    )
    states = DenseStates(dense, ids)
    later, later_s, both_again_s = time_ratio(lambda: divergence_from_dense(states, pruned), forward, repeats=REPEATS)
    on = f"{BLOCKS} × {LENGTH} tokens"
    return [
        Claim(
            "divergence of the first model / forward passes with head of both",
            first, 1.1, "", f"{first_s:.2f} s / {both_s:.2f} s, {on}",
        ),
        Claim(
            "of each model after it, with the dense model's states at hand / the same passes",
            later, 0.8, "", f"{later_s:.2f} s / {both_again_s:.2f} s, {on}",
        ),
    ]  # fmt: skip
