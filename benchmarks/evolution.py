"""Layers chosen by evolution and by SLEB's search on the same tokens, with as many layer-forwards."""

from __future__ import annotations

from benchmarks.measure import Claim, embedded_model, text_blocks
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.edit import Edit
from linearpatch.models.model import LoadedModel
from linearpatch.pruners.evolution import Evolution
from linearpatch.pruners.sleb import Sleb

SIZES = (5, 7, 9)
BLOCKS, LENGTH = 16, 64


def claims() -> list[Claim]:
    """At 5, 7 and 9 layers, the loss of the sets that evolution finds is at most that of SLEB's."""
    model = embedded_model()
    blocks = text_blocks(model, BLOCKS, LENGTH)
    made, greedy_pruner = [], Sleb()
    for size in SIZES:
        workspace = Workspace(model.decoder, blocks)
        greedy = greedy_pruner.select(workspace, size)
        forwards = workspace.layer_forwards
        evolution = Evolution(
            protect_first=greedy_pruner.protect_first,
            protect_last=greedy_pruner.protect_last,
            start=["shortgpt", "streamline"],
            measure="loss",
            generations=10_000,
            max_layer_forwards=forwards,
        )
        evolved = evolution.select(Workspace(model.decoder, blocks), size)
        ours, other = (_loss(model, blocks, edit) for edit in (evolved, greedy))
        detail = (
            f"{ours:.3f} / {other:.3f}, {forwards:,} layer-forwards, {BLOCKS} × {LENGTH} tokens; "
            f"{_shown(evolved)} and {_shown(greedy)}"
        )
        made.append(Claim(f"{size} layers: loss of evolution's set / of SLEB's", ours / other, 1.0, "", detail))
    return made


def _loss(model: LoadedModel, blocks: TokenBlocks, edit: Edit) -> float:
    return Workspace(model.decoder, blocks).losses(blocks, edit, [edit])[0].loss


def _shown(edit: Edit) -> str:
    return "-".join(map(str, sorted(edit.removed_layers)))
