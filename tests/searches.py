"""Workspaces with a patch and held-out tokens, for tests of searches over patched models."""

import torch
from conftest import tiny_model
from edits import repaired, view_of

from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.none import NoPatch
from linearpatch.patches.rotate import Rotate

PATCHES = [NoPatch(), Rotate(), LeastSquares(ridge=0.1), LeastSquares(ridge=0.1, features="rms_normalised", bias=True)]


def random_blocks(count, seed):
    return TokenBlocks(torch.randint(3, 300, (count, 12), generator=torch.Generator().manual_seed(seed)), "random")


def workspace_for(patch, decoder=None, cache=None):
    return Workspace(
        decoder or decoder_of(tiny_model()),
        random_blocks(12, 8),
        held_out=random_blocks(6, 9),
        patch=patch,
        cache=cache,
    )


def patched_view(workspace, patch, removed):
    if not removed:
        return workspace.decoder.model
    fitted = repaired(patch, workspace, removed)
    return view_of(workspace.decoder, removed, fitted)


def chosen(edit):
    """What a pruner says: layers and scores."""
    return edit.removed_layers, edit.scores
