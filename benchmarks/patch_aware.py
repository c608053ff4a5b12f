"""The search over patched windows, in forward passes of the dense model; and the whole recommended recipe."""

from __future__ import annotations

import time

import torch

from benchmarks.measure import Claim, embedded_model, text_blocks
from linearpatch.calibration.comparison import repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.config import compose_experiment
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import stream_nll
from linearpatch.models.model import LoadedModel
from linearpatch.models.passes import record
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.patch_aware import PatchAware

REMOVED, FITTED, HELD_OUT, LENGTH = 7, 8, 16, 512
BLOCKS = "calibration.num_blocks=40"  # for all of them; on its own the recipe takes 42
RECIPES = {  # as settings over experiment=recommended
    "recommended": (),
    "streamline + rotate": ("pruner=streamline", "patch=rotate"),
    "streamline + lstsq": ("pruner=streamline", "patch=lstsq"),
    "shortgpt + lstsq": ("pruner=shortgpt", "patch=lstsq"),
}


def claims() -> list[Claim]:
    """For ten windows at most five dense passes with head; early stops beside none; the recommended recipe."""
    model = embedded_model()
    text = text_blocks(model, FITTED + HELD_OUT, LENGTH)
    fitted, held_out = (TokenBlocks(ids, text.source) for ids in text.ids.split([FITTED, HELD_OUT]))
    patch = LeastSquares(weighting="relative")

    dense = min(_dense_pass(model.decoder, held_out) for _ in range(3))
    started = time.perf_counter()
    workspace = Workspace(model.decoder, fitted, held_out=held_out, patch=patch)
    windows = [range(start, start + REMOVED) for start in range(1, model.decoder.num_layers - REMOVED + 1)]
    workspace.candidate_edits.edits(windows)
    fits = time.perf_counter() - started

    started = time.perf_counter()
    quick = PatchAware(protect_first=1).select(workspace, REMOVED)
    search = time.perf_counter() - started
    ran = workspace.layer_forwards

    thorough_workspace = Workspace(model.decoder, fitted, held_out=held_out, patch=patch)
    thorough = PatchAware(protect_first=1, stop_early=False).select(thorough_workspace, REMOVED)
    allowed = dense * 5 * len(windows) / 10
    detail = f"{len(windows)} windows of {REMOVED}, {HELD_OUT} × {LENGTH} tokens; fits {fits:.1f} s"
    return [
        Claim("time / (5 dense passes for ten windows)", search / allowed, 1.0, "", f"{search:.1f} s, {detail}"),
        Claim("layer-forwards / without early stop", ran / thorough_workspace.layer_forwards, 1.0, "", f"{ran:,}"),
        Claim(
            "different windows",
            float(quick.removed_layers != thorough.removed_layers),
            0.5,
            "",
            f"{list(quick.removed_layers)}",
        ),
        _recipe(model),
    ]


def _recipe(model: LoadedModel) -> Claim:
    """Seconds for layers and patches of `experiment=recommended`, and beside it for recipes that are published."""
    seconds = {name: _time(model, *settings) for name, settings in RECIPES.items()}
    ours = seconds.pop("recommended")
    others = ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items())
    return Claim("layers and patches of the recommended recipe", ours, 120, "s", f"the same text: {others}")


def _time(model: LoadedModel, *settings: str) -> float:
    """Seconds for layers and patches of a recipe, on overlapping crops of a text that is too short."""
    experiment = compose_experiment(
        ["experiment=recommended", "corpus=pydoc", "calibration.corpus=null", BLOCKS, *settings]
    )
    fitted, length = experiment.calibration.num_blocks, experiment.calibration.block_length
    spec = BlockSpec(fitted + experiment.num_held_out, length, sampling="crops")
    text = experiment.calibration_reader.read(spec, model.tokenizer)
    blocks, held_out = (TokenBlocks(ids, text.source) for ids in text.ids.split([fitted, len(text.ids) - fitted]))
    started = time.perf_counter()
    workspace = Workspace(model.decoder, blocks, held_out=held_out, patch=experiment.patch)
    workspace.collect(*experiment.pruner.chooser.statistics(REMOVED), *experiment.patch.statistics())
    repair(workspace, experiment.patch, experiment.pruner.choose(workspace, REMOVED))
    return time.perf_counter() - started


@torch.no_grad()
def _dense_pass(decoder: Decoder, blocks: TokenBlocks) -> float:
    """Seconds for the loss of the dense model."""
    started = time.perf_counter()
    for batch in blocks.ids.to(decoder.input_device).split(1):
        stream = record(decoder, batch, {decoder.num_layers}).streams[decoder.num_layers]
        stream_nll(decoder, stream, batch)
    return time.perf_counter() - started
