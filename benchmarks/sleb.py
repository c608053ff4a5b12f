"""SLEB's search with shared prefixes and early stops, against trying every candidate on the whole model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.measure import Claim, embedded_model, text_blocks
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import stream_nll
from linearpatch.models.passes import record
from linearpatch.pruners.sleb import Sleb

REMOVED, BLOCKS, LENGTH = 7, 4, 128


def claims() -> list[Claim]:
    """At most 0.52 of the layer-forwards, the same layers; the wall-clock ratio beside it."""
    model = embedded_model()
    decoder, blocks = model.decoder, text_blocks(model, BLOCKS, LENGTH)
    batches = blocks.ids.to(decoder.input_device).split(1)

    started = time.perf_counter()
    workspace = Workspace(decoder, blocks)
    removed = Sleb().select(workspace, REMOVED).removed_layers
    ours = time.perf_counter() - started

    started = time.perf_counter()
    expected, forwards = exhaustive(decoder, batches)
    other = time.perf_counter() - started

    detail = f"{REMOVED} of {decoder.num_layers} layers, {BLOCKS} × {LENGTH} tokens"
    same = float(list(removed) != expected)
    ratio = workspace.layer_forwards / forwards
    return [
        Claim("layer-forwards / exhaustive search", ratio, 0.52, "", f"{detail}, {forwards:,} exhaustive"),
        Claim("wall clock / exhaustive search", ours / other, 1.0, "", f"{ours:.1f} s / {other:.1f} s"),
        Claim("different layers removed", same, 1.0, "", f"{list(removed)} and {expected}"),
    ]


@torch.no_grad()
def exhaustive(decoder: Decoder, batches: Sequence[Tensor]) -> tuple[list[int], int]:
    """SLEB as published: each candidate runs the whole remaining model; also counts layer-forwards."""
    recordings = [record(decoder, batch) for batch in batches]
    removed: list[int] = []
    forwards = 0
    for _ in range(REMOVED):
        alive = [layer for layer in range(decoder.num_layers) if layer not in removed]
        losses = {}
        for candidate in alive[1:-1]:
            kept = [layer for layer in alive if layer != candidate]
            total = 0.0
            for batch, recording in zip(batches, recordings, strict=True):
                stream = decoder.run_layers(recording.streams[0], recording.calls, kept)
                total += stream_nll(decoder, stream, batch).sum(dtype=torch.float64).item()
                forwards += len(kept)
            losses[candidate] = total
        removed.append(min(losses, key=lambda layer: (losses[layer], layer)))
    return removed, forwards
