"""The search with shared prefixes and early stops against removing every candidate for real."""

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from edits import edit_of, on_mlp, on_stream, view_of

from linearpatch.calibration.candidate_losses import CandidateSearch
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import DENSE, PlacedOperator
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.pruners.sleb import Sleb


def direct_loss(decoder, removed, ids, patches=()):
    """Mean next-token loss of the model with layers really gone, from its full logits."""
    model = view_of(decoder, removed, patches) if removed else decoder.model
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
    assert list(selection.removed_layers) == greedy(decoder, blocks.ids, 4)


def without(*layers):
    return [edit_of((layer,)) for layer in layers]


@pytest.mark.parametrize("survivors", [1, 2])
@pytest.mark.slow
def test_an_early_stop_gives_lower_bounds_and_the_same_best(decoder, survivors):
    batches = torch.randint(3, 300, (60, 5), generator=torch.Generator().manual_seed(2)).split(1)
    models = [*without(*range(NUM_LAYERS)), edit_of((0, 1, 2, 3, 4)), edit_of((0, 2, 4, 5))]
    exact = CandidateSearch(decoder, batches).losses(models)
    stopped = CandidateSearch(decoder, batches).losses(models, survivors=survivors)
    best = sorted(range(len(models)), key=lambda index: exact[index].loss)[:survivors]
    assert any(loss.is_bound for loss in stopped)
    assert [stopped[index] for index in best] == [exact[index] for index in best]
    for found, true in zip(stopped, exact, strict=True):
        assert found.loss <= true.loss + 1e-9
        if found.is_bound:
            assert found.loss > max(stopped[index].loss for index in best)


def test_one_search_serves_every_smaller_number(workspace):
    longest = Sleb().select(workspace, 4).removed_layers
    assert [Sleb().select(workspace, n).removed_layers for n in (1, 2, 3)] == [longest[:n] for n in (1, 2, 3)]


def test_half_the_layers_run(decoder, blocks):
    search = CandidateSearch(decoder, [blocks.ids])
    search.losses(without(*range(1, NUM_LAYERS - 1)))
    # Once through the model, then for candidate j the layers after it.
    assert search.layer_forwards == NUM_LAYERS + sum(NUM_LAYERS - 1 - j for j in range(1, NUM_LAYERS - 1))


def test_a_candidate_that_breaks_the_model_loses(decoder, blocks, monkeypatch):
    import linearpatch.calibration.candidate_losses as module

    calls = []
    plain = module.stream_nll

    def broken_once(*arguments):
        calls.append(1)
        loss = plain(*arguments)
        return loss * float("nan") if len(calls) == 1 else loss

    monkeypatch.setattr(module, "stream_nll", broken_once)
    broken, whole = CandidateSearch(decoder, [blocks.ids]).losses(without(1, 2), survivors=1)
    assert broken.loss == float("inf")
    assert whole.loss < 100


MODELS = [  # each with its patches, by their interfaces
    ((), ()),
    ((2, 3), ((2, 4),)),
    ((2, 3, 4), ((2, 5),)),
    ((0,), ((0, 1),)),
    ((4, 5), ((4, 6),)),
    ((1, 3, 4), ((1, 2), (3, 5))),
    ((1, 2, 4), ((1, 3), (4, 5))),
    ((5, 1), ((1, 2), (5, 6))),
]


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt_neox"])
@pytest.mark.parametrize("stands_at", range(len(MODELS)))
def test_losses_of_patched_models_are_those_of_their_views(family, stands_at, blocks):
    """Whatever model the search stands at, and whichever it stood at before."""
    decoder = decoder_of(tiny_model(family))
    modules = {(start, end): random_map(10 * start + end) for _, interfaces in MODELS for start, end in interfaces}
    operators = {interface: PlacedOperator(on_stream(*interface), module) for interface, module in modules.items()}
    models = [edit_of(removed, [operators[interface] for interface in interfaces]) for removed, interfaces in MODELS]
    search = CandidateSearch(decoder, blocks.ids.split(2))
    search.move(models[5])
    search.move(models[stands_at])
    for model, found in zip(models, search.losses(models), strict=True):
        expected = direct_loss(decoder, model.removed_layers, blocks.ids, model.operators)
        assert found.loss == pytest.approx(expected, rel=1e-5)


def test_losses_of_models_patched_at_an_mlp(decoder, blocks):
    patch = random_map(3)
    model = edit_of((3, 4), ((on_mlp(3, 5), patch),))
    search = CandidateSearch(decoder, [blocks.ids])
    (found,) = search.losses([model])
    expected = direct_loss(decoder, model.removed_layers, blocks.ids, model.operators)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert search.losses([DENSE])[0].loss == pytest.approx(direct_loss(decoder, [], blocks.ids), rel=1e-5)


def random_map(seed):
    matrix = torch.eye(32) + 0.3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
    return LinearMap(matrix)
