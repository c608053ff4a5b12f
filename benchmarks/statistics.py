"""All statistics of the ranking pass together, against one bare forward pass without the head."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Claim, embedded_model, peak_memory, text_blocks, time_ratio
from linearpatch.calibration.statistics import LastTokenAngle, Magnitude, WindowCosine
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.model import LoadedModel

# What streamline, shortgpt and angular at n = 5, and diag and rotate at every layer, want to know.
WANTED = (WindowCosine(5), WindowCosine(1), LastTokenAngle(5), Magnitude("channel"), Magnitude("hadamard"))
BLOCKS, LENGTH = 1, 1024


def claims() -> list[Claim]:
    """Time at most 1.15 × the bare pass; memory at most the bare pass' plus one batch's fp32 streams."""
    model = embedded_model()
    blocks = text_blocks(model, BLOCKS, LENGTH)
    batches = blocks.ids.to(model.decoder.input_device).split(BLOCKS)

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            model.decoder.forward(batch, use_cache=False)

    ratio, ours, other = time_ratio(lambda: collect(model, blocks.ids), bare)
    streams = (model.decoder.num_layers + 1) * BLOCKS * LENGTH * model.decoder.hidden_size * 4
    limit = peak_memory(bare_pass, BLOCKS, LENGTH) + streams
    detail = f"{BLOCKS} × {LENGTH} tokens a batch"
    return [
        Claim("time / bare forward pass", ratio, 1.15, "", f"{ours:.2f} s / {other:.2f} s, {detail}"),
        Claim("peak memory", peak_memory(collect, BLOCKS, LENGTH) / 2**20, limit / 2**20, "MiB", detail),
    ]


def collect(model: LoadedModel, ids: Tensor) -> None:
    """One pass with all statistics, nothing remembered."""
    Workspace(model.decoder, TokenBlocks(ids.cpu(), "bench"), batch_size=BLOCKS).collect(*WANTED)


def bare_pass(model: LoadedModel, ids: Tensor) -> None:
    """One forward pass without the head."""
    model.decoder.forward(ids, use_cache=False)
