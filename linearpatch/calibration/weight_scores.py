"""Scores of a model's weights, each computed once for a workspace and cached."""

from __future__ import annotations

from torch import Tensor

from linearpatch.calibration.finite import finite
from linearpatch.calibration.gradients import first_order_importance
from linearpatch.calibration.gradients import weight_norms as compute_weight_norms
from linearpatch.calibration.part_importance import part_importance as compute_part_importance
from linearpatch.calibration.workspace import Workspace
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Entry

# Versions of what this file computes; raise one when its numbers change.
IMPORTANCE_VERSION = 1
PART_IMPORTANCE_VERSION = 1
WEIGHT_NORM_VERSION = 1


def importance(workspace: Workspace, *, sublayers: bool = False) -> Tensor:
    """First-order (Taylor) importance of each layer, `[L]`; see `first_order_importance`.

    Args:
        workspace: The model and the tokens.
        sublayers: Of each sublayer, `[2 L]`: attention and MLP in turn.
    """
    decoder, batches = workspace.decoder, workspace.batches

    def compute() -> Entry:
        with steps("gradients", len(batches) * decoder.num_layers) as on_step:
            values = first_order_importance(decoder, batches, sublayers=sublayers, on_step=on_step)
        return Entry({"importance": finite(values, "the first-order importance", "layer")})

    # Batches decide where absolute values are taken, so their size is part of the key.
    sizes = [len(batch) for batch in batches]
    of = {"sublayers": True} if sublayers else {}
    key = {**workspace.key, "version": IMPORTANCE_VERSION, "batches": sizes, **of}
    return workspace.cache.get("importance", key, compute).tensors["importance"]


def part_importance(workspace: Workspace, layers: range, kind: str) -> tuple[Tensor, Tensor]:
    """First-order importance of heads and MLP channels of some layers.

    Args:
        workspace: The model and the tokens.
        layers: Of equal widths.
        kind: `element` or `vector`; see `calibration.part_importance`.

    Returns:
        `[layers, heads]` and `[layers, channels]`.
    """
    decoder, batches = workspace.decoder, workspace.batches

    def compute() -> Entry:
        with steps("gradients", len(batches) * (decoder.num_layers - layers[0])) as on_step:
            heads, channels = compute_part_importance(decoder, batches, layers, kind, on_step=on_step)
        what = "the first-order importance"
        return Entry({"heads": finite(heads, what, "layer"), "channels": finite(channels, what, "layer")})

    sizes = [len(batch) for batch in batches]
    asked = {"layers": list(layers), "kind": kind, "batches": sizes}
    key = {**workspace.key, "version": PART_IMPORTANCE_VERSION, **asked}
    entry = workspace.cache.get("part_importance", key, compute)
    return entry.tensors["heads"], entry.tensors["channels"]


def weight_norms(workspace: Workspace, power: float, *, sublayers: bool = False) -> Tensor:
    """Σ|W|^power over each layer's weights, `[L]` in fp64; needs no tokens.

    Args:
        workspace: The model.
        power: The exponent.
        sublayers: Over each sublayer's, `[2 L]`: attention and MLP in turn.
    """

    def compute() -> Entry:
        norms = compute_weight_norms(workspace.decoder, power, sublayers=sublayers)
        return Entry({"norm": finite(norms, "the weights", "layer")})

    of = {"sublayers": True} if sublayers else {}
    key = {"model": workspace.key["model"], "version": WEIGHT_NORM_VERSION, "power": power, **of}
    return workspace.cache.get("weight_norm", key, compute).tensors["norm"]
