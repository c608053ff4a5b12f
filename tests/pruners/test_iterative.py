"""Pruning one layer at a time from a model that is patched each time, against doing it by hand."""

import pytest
import torch
from conftest import NUM_LAYERS
from edits import on_stream, repaired, view_of
from searches import PATCHES, chosen, patched_view, workspace_for

from linearpatch.calibration.statistics import WindowCosine
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import decoder_of
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.perplexity import Perplexity
from linearpatch.pruners.random import Random
from linearpatch.pruners.shortgpt import ShortGPT
from linearpatch.pruners.sleb import Sleb
from linearpatch.pruners.streamline import Streamline
from linearpatch.pruners.taylor import Taylor
from linearpatch.storage.cache import Cache


def iterated(workspace, patch, n, score):
    """Score each layer that is left in the patched model, remove the lowest, patch, again."""
    removed = []
    for _ in range(n):
        left = [layer for layer in range(NUM_LAYERS) if layer not in removed]
        view = decoder_of(patched_view(workspace, patch, removed))
        scores = score(Workspace(view, workspace.blocks), left)
        removed.append(min(scores, key=lambda layer: scores[layer]))
    return removed


@pytest.mark.parametrize("patch", PATCHES, ids=repr)
def test_iterative_block_influence_is_measured_in_the_patched_model(patch):
    def influence(workspace, left):
        cosine = workspace.statistic(WindowCosine(1))["cosine"]
        return dict(zip(left, (1 - cosine).tolist(), strict=True))

    workspace = workspace_for(patch)
    selection = ShortGPT(iterative=True).chooser.select(workspace, 4)
    assert list(selection.removed_layers) == iterated(workspace, patch, 4, influence)
    assert len(selection.scores.steps[2].losses) == NUM_LAYERS - 2


@pytest.mark.parametrize("patch", PATCHES, ids=repr)
def test_iterative_taylor_goes_through_the_patches_and_scores_layers_alone(patch):
    def importance(workspace, left):
        model = workspace.decoder.model.requires_grad_(True)
        ids = workspace.blocks.ids
        total = dict.fromkeys(left, 0.0)
        for block in ids.split(1):
            model.zero_grad()
            logits = model(input_ids=block, use_cache=False).logits[:, :-1].flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, block[:, 1:].flatten()).backward()
            for layer, module in zip(left, workspace.decoder.layers, strict=True):
                total[layer] += sum(
                    (w.grad * w.detach()).abs().sum().item()
                    for name, w in module.named_parameters()
                    if not name.endswith("bias") and not name.startswith("linear_patch")
                )
        model.requires_grad_(False)
        return total

    workspace = workspace_for(patch)
    selection = Taylor(protect_first=0, protect_last=0, iterative=True).chooser.select(workspace, 3)
    assert list(selection.removed_layers) == iterated(workspace, patch, 3, importance)


@pytest.mark.parametrize("patch", PATCHES[1:3], ids=repr)
@pytest.mark.parametrize("pruner", [Perplexity(iterative=True), Sleb(0, 0, iterative=True)], ids=repr)
def test_iterative_losses_keep_the_patches_that_are_there(pruner, patch):
    """A candidate goes without a patch of its own; those fitted before stay, also where their reader goes."""
    workspace = workspace_for(patch)
    ids = workspace.blocks.ids
    removed = []
    for _ in range(3):
        fitted = repaired(patch, workspace, sorted(removed)) if removed else []
        losses = {}
        for layer in range(NUM_LAYERS):
            if layer not in removed:
                patches = [(moved(one.site, {*removed, layer}), one.module) for one in fitted]
                view = view_of(workspace.decoder, sorted([*removed, layer]), patches)
                with torch.no_grad():
                    logits = view(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).double()
                losses[layer] = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
        removed.append(min(losses, key=lambda layer: losses[layer]))
    assert list(pruner.chooser.select(workspace, 3).removed_layers) == removed


def moved(site, removed):
    reader = next(layer for layer in range(site.reader, NUM_LAYERS + 1) if layer not in removed)
    return on_stream(site.interface.start, site.interface.end, reader)


@pytest.mark.parametrize("pruner", [Streamline(iterative=True), Random(iterative=True)], ids=repr)
def test_every_pruner_can_iterate(pruner):
    workspace = workspace_for(LeastSquares(ridge=0.1))
    assert len(set(pruner.chooser.select(workspace, 3).removed_layers)) == 3


def test_iterating_is_reproduced_from_the_cache(tmp_path):
    patch = LeastSquares(ridge=0.1)
    first = ShortGPT(iterative=True).chooser.select(workspace_for(patch, cache=Cache(tmp_path)), 3)
    again = ShortGPT(iterative=True).chooser.select(workspace_for(patch, cache=Cache(tmp_path)), 3)
    assert chosen(again) == chosen(first)
