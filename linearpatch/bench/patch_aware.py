"""The search over patched windows, in forward passes of the dense model; and the whole recommended recipe."""

from __future__ import annotations

import time

import torch

from linearpatch.bench.measure import Claim, embedded_model, text_blocks
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import stream_nll
from linearpatch.models.passes import record
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.patch_aware import PatchAware

REMOVED, FITTED, HELD_OUT, LENGTH = 7, 8, 16, 512


def claims() -> list[Claim]:
    """For ten windows at most five dense passes with head; the early stop beside trying all to the end."""
    model = embedded_model()
    text = text_blocks(model, FITTED + HELD_OUT, LENGTH)
    fitted, held_out = (TokenBlocks(ids, text.source) for ids in text.ids.split([FITTED, HELD_OUT]))
    patch = LeastSquares(weighting="relative")

    dense = min(_dense_pass(model.decoder, held_out) for _ in range(3))
    started = time.perf_counter()
    workspace = Workspace(model.decoder, fitted, held_out=held_out, patch=patch)
    windows = [range(start, start + REMOVED) for start in range(model.decoder.num_layers - REMOVED + 1)]
    workspace.drafts.models(windows)
    fits = time.perf_counter() - started

    started = time.perf_counter()
    quick = PatchAware().select(workspace, REMOVED)
    search = time.perf_counter() - started
    ran = workspace.layer_forwards

    thorough_workspace = Workspace(model.decoder, fitted, held_out=held_out, patch=patch)
    thorough = PatchAware(stop_early=False).select(thorough_workspace, REMOVED)
    allowed = dense * 5 * len(windows) / 10
    detail = f"{len(windows)} windows of {REMOVED}, {HELD_OUT} × {LENGTH} tokens; fits {fits:.1f} s"
    return [
        Claim("time / (5 dense passes for ten windows)", search / allowed, 1.0, "", f"{search:.1f} s, {detail}"),
        Claim("layer-forwards / without early stop", ran / thorough_workspace.layer_forwards, 1.0, "", f"{ran:,}"),
        Claim("different windows", float(quick.removed != thorough.removed), 0.5, "", f"{list(quick.removed)}"),
    ]


@torch.no_grad()
def _dense_pass(decoder: Decoder, blocks: TokenBlocks) -> float:
    """Seconds for the loss of the dense model."""
    started = time.perf_counter()
    for batch in blocks.ids.to(decoder.input_device).split(1):
        stream = record(decoder, batch, {decoder.num_layers}).streams[decoder.num_layers]
        stream_nll(decoder, stream, batch)
    return time.perf_counter() - started
