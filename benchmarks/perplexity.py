"""Perplexity in chunks of logits, against the forward passes with head that it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Claim, embedded_model, peak_memory, text_blocks, time_ratio
from benchmarks.statistics import bare_pass
from linearpatch.evaluation.perplexity import window_losses
from linearpatch.models.model import LoadedModel

BLOCKS, LENGTH = 1, 1024
SHORT, LONG = 1024, 4096


def claims() -> list[Claim]:
    """Time at most 1.05 × the forward passes; memory past the layers that doesn't grow with the window."""
    model = embedded_model()
    ids = text_blocks(model, BLOCKS, LENGTH).ids

    @torch.no_grad()
    def forward() -> None:
        for batch in ids.to(model.decoder.input_device).split(BLOCKS):
            model.decoder.model(input_ids=batch, use_cache=False)

    ratio, ours, other = time_ratio(lambda: window_losses(model.decoder, ids, batch_size=BLOCKS), forward)
    short, long = (peak_memory(measure, 1, length) - peak_memory(bare_pass, 1, length) for length in (SHORT, LONG))
    full = (LONG - SHORT) * model.decoder.vocab_size * 4
    return [
        Claim(
            "time / forward passes with head",
            ratio,
            1.05,
            "",
            f"{ours:.2f} s / {other:.2f} s, {LENGTH} tokens a window",
        ),
        Claim(
            f"memory for the loss: growth from {SHORT} to {LONG} tokens",
            max(long - short, 0) / 2**20,
            0.1 * full / 2**20,
            "MiB",
            f"{short / 2**20:.0f} to {long / 2**20:.0f} MiB; full logits: {full / 2**20:.0f} MiB more",
        ),
    ]


def measure(model: LoadedModel, ids: Tensor) -> None:
    """The loss of every window."""
    window_losses(model.decoder, ids, batch_size=len(ids))
