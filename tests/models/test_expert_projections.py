"""Mixtures of experts: what their output projections read, and which experts are used."""

import pytest
import torch
from accelerate import cpu_offload
from edits import edit_of, in_projection, repaired, view_of
from tiny import model_of
from torch.nn.functional import linear, silu

from linearpatch.calibration.expert_use import MOST_NAMED, unused_experts
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.passes import projection_inputs, record
from linearpatch.models.places import InProjection
from linearpatch.models.projections import check_experts
from linearpatch.models.routing import routed_tokens
from linearpatch.models.runner import Runner
from linearpatch.models.units import Unit
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.refit import Refit

ROUTED = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
SHARED = ("deepseek_v3", "qwen2_moe", "llama4_text")
BLOCKS = TokenBlocks(torch.randint(3, 300, (24, 16), generator=torch.Generator().manual_seed(1)), "random")
LAYER = 5  # llama4_text and deepseek_v3 have experts there, too


def decoder_with(family):
    return decoder_of(model_of(family))


def seen(decoder, layer=LAYER):
    """What the mixture of a layer is called with, and what a map added to its output projections would multiply."""
    calls = []
    mixture = InProjection.projection_of(decoder, layer).module
    handle = mixture.register_forward_pre_hook(lambda _, args: calls.append(args[0].clone()))
    with projection_inputs(decoder, [Unit(layer, "mlp")]) as read:
        record(decoder, BLOCKS.ids[:2])
    handle.remove()
    return mixture, calls[-1].flatten(0, -2), read[Unit(layer, "mlp")].flatten(0, -2)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_routed_experts_read_a_weighted_sum(family):
    mixture, hidden, read = seen(decoder_with(family))
    _, scores, chosen = mixture.gate(hidden)
    experts = mixture.experts
    for token in range(len(hidden)):
        expected = 0
        for score, expert in zip(scores[token], chosen[token], strict=True):
            gate, up = linear(hidden[token], experts.gate_up_proj[expert]).chunk(2)
            expected = expected + score * silu(gate) * up
        assert torch.allclose(read[token], expected, rtol=1e-4, atol=1e-4 * read.abs().max())


def test_where_there_are_shared_experts_it_is_what_they_read():
    mixture, hidden, read = seen(decoder_with("deepseek_v3"))
    shared = mixture.shared_experts
    assert torch.allclose(read, silu(shared.gate_proj(hidden)) * shared.up_proj(hidden), rtol=1e-4, atol=1e-5)

    mixture, hidden, read = seen(decoder_with("qwen2_moe"))
    shared = mixture.shared_expert
    expected = mixture.shared_expert_gate(hidden).sigmoid() * silu(shared.gate_proj(hidden)) * shared.up_proj(hidden)
    assert torch.allclose(read, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*ROUTED, *SHARED])
def test_an_operator_beside_them_is_one_inside_them(family):
    decoder = decoder_with(family)
    projection = InProjection.projection_of(decoder, LAYER)
    assert projection.is_routed == (family in ROUTED)
    before = {name: weights.clone() for name, weights in decoder.model.named_parameters()}
    change = 0.3 * torch.randn(projection.width, decoder.hidden_size, generator=torch.Generator().manual_seed(2))
    edit = edit_of([6], [(in_projection(6, 7), LinearMap(change))])
    seen = record(decoder, BLOCKS.ids[:2])
    beside = Runner(decoder, edit)
    with torch.no_grad():
        stream = beside.streams(seen.streams[beside.entry], seen.calls, [7])[7]
    inside = record(decoder_of(edit.view(decoder)), BLOCKS.ids[:2]).streams[6]
    assert torch.allclose(stream, inside, rtol=1e-4, atol=1e-4 * inside.abs().max())
    unchanged = record(decoder_of(view_of(decoder, [6])), BLOCKS.ids[:2]).streams[6]
    assert (inside - unchanged).abs().max() > 1e-2 * inside.abs().max()
    assert all(torch.equal(weights, before[name]) for name, weights in decoder.model.named_parameters())


def test_mixtures_that_make_something_else_of_it_are_rejected():
    decoder = decoder_with("olmoe")
    projection = InProjection.projection_of(decoder, LAYER)
    check_experts(decoder, [projection])
    for layer in decoder.layers:
        layer.mlp.forward = squashed(layer.mlp)
    with pytest.raises(ModelError, match=r"OlmoeSparseMoeBlock combines its experts' outputs in a way .* patch=lstsq"):
        check_experts(decoder, [projection])


def squashed(module):
    return lambda hidden: type(module).forward(module, hidden).tanh()


def test_experts_that_are_kept_otherwise_are_rejected():
    decoder = decoder_with("dbrx")
    with pytest.raises(ModelError, match=r"keeps its experts' weights .* patch=lstsq"):
        MlpRefit().check(decoder)
    assert isinstance(Refit(fall_back=True).for_model(decoder), LeastSquares)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_offloaded_experts_read_the_same(family):
    _, _, expected = seen(decoder_with(family))
    offloaded = decoder_with(family)
    cpu_offload(offloaded.layers[LAYER], execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.layers[LAYER].parameters())
    _, _, read = seen(offloaded)
    assert torch.allclose(read, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(seen(offloaded)[2], read)  # its weights are back
    check_experts(offloaded, [InProjection.projection_of(offloaded, LAYER)])


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_refit_explains_more_than_no_patch(family):
    decoder = decoder_with(family)
    MlpRefit().check(decoder)
    (fitted,) = repaired(MlpRefit(ridge=1e-3), Workspace(decoder, BLOCKS, batch_size=8), [6])
    assert fitted.diagnostics["error_after"] < 0.9 * fitted.diagnostics["error_before"]
    assert not fitted.warning


def test_tokens_are_counted_by_expert():
    for family, router in (("mixtral", "gate"), ("llama4_text", "router")):
        decoder = decoder_with(family)
        mixture = InProjection.projection_of(decoder, LAYER).module
        logits = []
        handle = mixture.get_submodule(router).register_forward_hook(
            lambda _, __, output, kept=logits: kept.append(max(output, key=lambda part: part.shape[-1]))
        )
        with routed_tokens(decoder, [0, LAYER]) as routed:
            record(decoder, BLOCKS.ids[:2])
        handle.remove()
        chosen = (logits[0] if family == "mixtral" else logits[0].float()).topk(mixture.top_k).indices
        assert torch.equal(routed[LAYER], torch.bincount(chosen.flatten(), minlength=4)), family
    with routed_tokens(decoder_of(model_of("llama")), [1]) as routed:
        assert routed == {}


@pytest.mark.parametrize(
    ("family", "patch", "bias"),
    [
        ("gpt_oss", MlpRefit(ridge=0.1), "mlp.router.bias"),
        ("gpt_oss", Refit(ridge=0.1, sequential=True), "mlp.router.bias"),
        ("deepseek_v3", MlpLeastSquares(ridge=0.1), "mlp.gate.e_score_correction_bias"),
    ],
)
def test_experts_that_no_token_reaches_are_named(family, patch, bias):
    decoder = decoder_with(family)
    owner, _, name = bias.rpartition(".")
    getattr(decoder.layers[LAYER].get_submodule(owner), name)[2] = -1e6
    fitted, *_ = repaired(patch, Workspace(decoder, BLOCKS, batch_size=8), [6])
    assert f"all 4 experts of layer {LAYER}, and no token of the calibration text (384) was routed to expert 2." in (
        fitted.warning
    )


def test_shared_experts_see_every_token_and_long_lists_are_cut():
    decoder = decoder_with("deepseek_v3")
    decoder.layers[LAYER].mlp.gate.e_score_correction_bias[2] = -1e6
    assert not any(one.warning for one in repaired(MlpRefit(ridge=0.1), Workspace(decoder, BLOCKS, batch_size=8), [6]))
    use = {"tokens": torch.zeros(MOST_NAMED + 5).double(), "count": torch.tensor(8.0)}
    assert f", {MOST_NAMED - 1} and 5 more." in unused_experts(3, use, "refit")
