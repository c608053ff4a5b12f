"""Layer-by-layer importance against one ordinary backward pass through the whole model."""

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model

from linearpatch.calibration.gradients import first_order_importance, layer_weights
from linearpatch.models import loss as loss_module
from linearpatch.models.decoder import decoder_of

TOKENS = torch.randint(3, 300, (4, 10), generator=torch.Generator().manual_seed(5))


def signed_sums(model, batches):
    """Σ over batches of W ⊙ ∂L/∂W for each weight of each layer, from plain autograd."""
    decoder = decoder_of(model)
    model.requires_grad_(True)
    sums = [[torch.zeros_like(w) for w in layer_weights(layer)] for layer in decoder.layers]
    per_batch = torch.zeros(NUM_LAYERS, dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        for index, layer in enumerate(decoder.layers):
            for slot, weight in zip(sums[index], layer_weights(layer), strict=True):
                if weight.grad is not None:
                    slot += (weight * weight.grad).detach()
                    per_batch[index] += (weight * weight.grad).detach().abs().sum(dtype=torch.float64)
    model.requires_grad_(False)
    signed = torch.stack([sum(s.abs().sum(dtype=torch.float64) for s in layer) for layer in sums])
    return per_batch, signed


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "falcon", "qwen3_moe"])
def test_importance_is_that_of_a_backward_pass(family):
    batches = TOKENS.split(2)
    expected, _ = signed_sums(tiny_model(family), batches)
    found = first_order_importance(decoder_of(tiny_model(family)), batches)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_with_one_batch_the_official_signed_sum_is_the_same():
    found = first_order_importance(decoder_of(tiny_model()), [TOKENS])
    _, signed = signed_sums(tiny_model(), [TOKENS])
    assert torch.allclose(found, signed, rtol=1e-4)


def test_with_more_batches_signs_would_cancel():
    _, signed = signed_sums(tiny_model(), TOKENS.split(1))
    assert (first_order_importance(decoder_of(tiny_model()), TOKENS.split(1)) > signed * 1.01).all()


def test_chunks_of_the_head_do_not_change_the_gradient(monkeypatch):
    decoder = decoder_of(tiny_model())
    whole = first_order_importance(decoder, [TOKENS])
    monkeypatch.setitem(loss_module.LOGIT_BYTES, "cpu", 1)  # sixteen tokens at a time
    assert torch.allclose(first_order_importance(decoder, [TOKENS]), whole, rtol=1e-5)


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    model.model.layers[2].self_attn.q_proj.weight.requires_grad_(True)
    first_order_importance(decoder_of(model), [TOKENS])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "model.layers.2.self_attn.q_proj.weight"
    ]
    assert all(p.grad is None for p in model.parameters())


def test_all_matrices_and_norms_count_and_no_bias():
    names = {id(p): name for name, p in tiny_model("opt").named_parameters()}
    model = tiny_model("opt")
    names = {id(p): name.split(".", 4)[-1] for name, p in model.named_parameters()}
    counted = {names[id(weight)] for weight in layer_weights(decoder_of(model).layers[0])}
    assert counted == {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.out_proj.weight",
        "self_attn_layer_norm.weight", "fc1.weight", "fc2.weight", "final_layer_norm.weight",
    }  # fmt: skip
