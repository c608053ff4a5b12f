"""The search with shared prefixes and early stops against removing every candidate for real."""

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model

from linearpatch.calibration.suffix import SuffixSearch
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import decoder_of
from linearpatch.models.views import view_of
from linearpatch.pruners.sleb import Sleb


def direct_loss(decoder, removed, ids):
    """Mean next-token loss of the model with layers really gone, from its full logits."""
    model = view_of(decoder, removed) if removed else decoder.model
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
    return losses.item()


def greedy(decoder, ids, n, first=1, last=1):
    """SLEB as published: every step tries every candidate on the whole model."""
    removed = []
    for _ in range(n):
        alive = [layer for layer in range(NUM_LAYERS) if layer not in removed]
        losses = {layer: direct_loss(decoder, [*removed, layer], ids) for layer in alive[first : len(alive) - last]}
        removed.append(min(losses, key=lambda layer: (losses[layer], layer)))
    return removed


@pytest.mark.parametrize("removed", [[], [2], [3, 1]])
def test_losses_are_those_of_the_models_without_the_layer(workspace, decoder, blocks, removed):
    candidates = [layer for layer in range(NUM_LAYERS) if layer not in removed]
    found = workspace.removal_losses(removed, candidates)
    for layer in candidates:
        assert found[layer].loss == pytest.approx(direct_loss(decoder, [*removed, layer], blocks.ids), rel=1e-5)
        assert not found[layer].is_bound


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "opt", "falcon"])
@pytest.mark.parametrize("stop_early", [False, True])
def test_sleb_removes_what_the_exhaustive_search_removes(family, stop_early, blocks):
    decoder = decoder_of(tiny_model(family))
    workspace = Workspace(decoder, blocks, batch_size=1)
    selection = Sleb(stop_early=stop_early).select(workspace, 4)
    assert list(selection.removed) == greedy(decoder, blocks.ids, 4)


def test_an_early_stop_gives_a_lower_bound_and_the_same_best(decoder):
    batches = torch.randint(3, 300, (60, 5), generator=torch.Generator().manual_seed(2)).split(1)
    exact = SuffixSearch(decoder, batches).losses(range(NUM_LAYERS), stop_early=False)
    order = sorted(exact, key=lambda layer: exact[layer].loss)
    stopped = SuffixSearch(decoder, batches).losses(order, stop_early=True)
    assert any(loss.is_bound for loss in stopped.values())
    assert stopped[order[0]] == exact[order[0]]
    for layer, loss in stopped.items():
        assert loss.loss <= exact[layer].loss + 1e-9
        if loss.is_bound:
            assert loss.loss > stopped[order[0]].loss


def test_one_search_serves_every_smaller_number(workspace):
    longest = Sleb().select(workspace, 4).removed
    assert [Sleb().select(workspace, n).removed for n in (1, 2, 3)] == [longest[:n] for n in (1, 2, 3)]


def test_half_the_layers_run(decoder, blocks):
    search = SuffixSearch(decoder, [blocks.ids])
    search.losses(range(1, NUM_LAYERS - 1), stop_early=False)
    # Once through the model, then for candidate j the layers after it.
    assert search.layer_forwards == NUM_LAYERS + sum(NUM_LAYERS - 1 - j for j in range(1, NUM_LAYERS - 1))


def test_a_candidate_that_breaks_the_model_loses(decoder, blocks, monkeypatch):
    import linearpatch.calibration.suffix as module

    calls = []
    plain = module.stream_nll

    def broken_once(*arguments):
        calls.append(1)
        loss = plain(*arguments)
        return loss * float("nan") if len(calls) == 1 else loss

    monkeypatch.setattr(module, "stream_nll", broken_once)
    losses = SuffixSearch(decoder, [blocks.ids]).losses([1, 2], stop_early=True)
    assert losses[1].loss == float("inf")
    assert losses[2].loss < 100
