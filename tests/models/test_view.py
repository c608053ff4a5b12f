"""The invariants of a view, for every family."""

import copy

import pytest
import torch
from conftest import FAMILIES, NUM_LAYERS, tiny_model
from edits import on_mlp, on_stream, view_of
from torch import nn
from transformers import AutoModelForCausalLM

from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import check_logits, decoder_of, text_config
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.passes import mlp_outputs, record
from linearpatch.models.units import Interface, interfaces_of

TOKENS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(3))


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def skipping(decoder, removed):
    """The dense model with some layers skipped in place: each layer called as in the dense pass."""
    recording = record(decoder, TOKENS)
    kept = [layer for layer in range(NUM_LAYERS) if layer not in removed]
    stream = decoder.run_layers(recording.streams[0], recording.calls, kept)
    return decoder.logits(decoder.final_norm(stream))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "removed", [[1, 3], *(pytest.param(one, marks=pytest.mark.slow) for one in ([0, 1], [4, 5], [2]))]
)
def test_skipping_view_and_reload_agree_and_dense_stays(family, removed, tmp_path):
    model = tiny_model(family)
    decoder = decoder_of(model)
    before, config_before = logits_of(model), copy.deepcopy(model.config.to_dict())
    view = view_of(decoder, removed)

    expected = skipping(decoder, removed)
    assert torch.equal(logits_of(view), expected)

    view.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(reloaded), expected)

    assert torch.equal(logits_of(model), before)
    assert model.config.to_dict() == config_before


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached(family):
    view = view_of(decoder_of(tiny_model(family)), [0, 3], [(on_stream(3, 4, 4), LinearMap(torch.eye(32) * 1.3))])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(TOKENS)
    cached = view.generate(TOKENS, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, view.generate(TOKENS, attention_mask=mask, use_cache=False, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_shares_every_weight(family):
    model = tiny_model(family)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    view = view_of(decoder_of(model), [2])
    assert {parameter.data_ptr() for parameter in view.parameters()} <= own
    assert view.config is not model.config


def test_patch_sits_between_the_right_layers(decoder):
    matrix, second = torch.randn(32, 32) * 0.3, torch.randn(32, 32) * 0.3
    patches = [(on_stream(1, 3, 3), LinearMap(matrix)), (on_stream(5, 6, 6), LinearMap(second))]
    view = view_of(decoder, [1, 2, 5], patches)

    recording = record(decoder, TOKENS)
    stream = decoder.run_layers(recording.streams[0], recording.calls, [0]) @ matrix
    stream = decoder.run_layers(stream, recording.calls, [3, 4]) @ second
    expected = decoder.logits(decoder.final_norm(stream))
    assert torch.allclose(logits_of(view), expected, atol=1e-5)


def test_patches_of_one_reader_apply_in_order(decoder):
    first, second = torch.randn(32, 32) * 0.3, torch.randn(32, 32) * 0.3
    both = [(on_stream(1, 2, 3), LinearMap(first)), (on_stream(2, 3, 3), LinearMap(second))]
    one = [(on_stream(1, 3, 3), LinearMap(first @ second))]
    assert torch.allclose(
        logits_of(view_of(decoder, [1, 2], both)), logits_of(view_of(decoder, [1, 2], one)), atol=1e-5
    )


def test_a_patched_view_has_a_class_and_type_of_its_own(decoder):
    patches = [(on_stream(1, 2, 2), LinearMap(torch.eye(32)))]
    view, other = (view_of(decoder, [1], patches) for _ in range(2))
    assert isinstance(view, type(decoder.model))
    assert type(view) is type(other)
    assert view.config.model_type == "linearpatch_llama"
    assert decoder.model.config.model_type == "llama"
    assert type(view_of(decoder, [1])) is type(decoder.model)


def test_a_patched_model_is_not_pruned_again(decoder):
    view = view_of(decoder, [1], [(on_stream(1, 2, 2), LinearMap(torch.eye(32)))])
    with pytest.raises(ModelError, match="has lost layers before"):
        view_of(decoder_of(view), [1])
    twice = view_of(decoder_of(view_of(decoder, [1])), [1])
    assert torch.equal(logits_of(twice), logits_of(view_of(decoder, [1, 2])))


def test_a_copy_of_a_view_has_patches_of_its_own(decoder):
    patch = LinearMap(torch.eye(32) * 1.3)
    view = view_of(decoder, [1], [(on_stream(1, 2, 2), patch)])
    twin = copy.deepcopy(view)
    for module in (view, patch):
        for name, parameter in module.named_parameters():
            if "linear_patch" in name or module is patch:
                parameter.data.zero_()
    assert not torch.equal(logits_of(twin), logits_of(view))


def test_a_map_of_an_mlps_output_leaves_the_rest_of_the_stream(decoder):
    matrix = torch.randn(32, 32) * 0.3
    view = view_of(decoder, [2, 3], [(on_mlp(2, 4), LinearMap(matrix))])
    recording = record(decoder, TOKENS)
    with mlp_outputs(decoder, [1]) as added:
        record(decoder, TOKENS)
    stream = recording.streams[2] - added[1] + added[1] @ matrix
    stream = decoder.run_layers(stream, recording.calls, [4, 5])
    assert torch.allclose(logits_of(view), decoder.logits(decoder.final_norm(stream)), atol=1e-4)


def test_layer_types_follow_the_kept_layers():
    view = view_of(decoder_of(tiny_model("gemma3_text")), [0, 1])
    assert text_config(view.config).layer_types == [
        "full_attention", "sliding_attention", "sliding_attention", "full_attention",
    ]  # fmt: skip
    assert [layer.self_attn.layer_idx for layer in view.model.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("family", "settings", "rule"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ("gemma3n_text", {"num_kv_shared_layers": 2}, "num_kv_shared_layers=2"),
    ],
)
def test_rules_that_no_subset_can_follow_are_rejected_by_name(family, settings, rule):
    from transformers import CONFIG_MAPPING

    from linearpatch.models.layer_config import check_prunable

    with pytest.raises(ModelError, match=rule):
        check_prunable(CONFIG_MAPPING[family](**settings))


def test_index_lists_and_counts_follow_the_kept_layers():
    from transformers import PreTrainedConfig

    from linearpatch.models.layer_config import apply_changes, propose

    config = PreTrainedConfig()
    config.num_hidden_layers = 6
    config.mlp_only_layers = [0, 2, 5]
    config.first_k_dense_replace = 3
    config.no_rope_layers = [1, 1, 0, 1, 1, 0]
    config.eos_token_id = [1, 2, 3, 4, 5, 6]
    kept = [0, 2, 4, 5]
    apply_changes(config, propose(config, kept, num_layers=6).changes, len(kept))
    assert config.num_hidden_layers == 4
    assert config.mlp_only_layers == [0, 1, 3]
    assert config.first_k_dense_replace == 2
    assert config.no_rope_layers == [1, 0, 1, 0]
    assert config.eos_token_id == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([6], "don't exist"),
        ([-1], "don't exist"),
        ([1, 1], "twice"),
        ([0, 1, 2, 3, 4, 5], "Keep at least one"),
    ],
)
def test_impossible_removals_are_rejected(decoder, removed, message):
    with pytest.raises(ConfigError, match=message):
        view_of(decoder, removed)


def test_touching_removals_form_one_interface():
    assert interfaces_of([5, 3, 4, 9, 0]) == [Interface(0, 1), Interface(3, 6), Interface(9, 10)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_understood(family):
    check_logits(decoder_of(tiny_model(family)))


def test_unknown_logits_are_rejected():
    model = tiny_model()

    class Odd(nn.Module):
        def forward(self, hidden):
            return hidden * 2 + 1

    decoder = decoder_of(model)
    model.model.norm = nn.Sequential(model.model.norm, Odd())
    with pytest.raises(ModelError, match="logits"):
        check_logits(decoder)


def test_an_encoder_decoder_is_rejected():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=50, d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2)
    with pytest.raises(ModelError, match="not a decoder-only"):
        decoder_of(T5ForConditionalGeneration(config))


def test_a_dispatched_model_gives_the_same_logits(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected = logits_of(
        view_of(decoder_of(tiny_model()), [1, 2], [(on_stream(1, 3, 3), LinearMap(torch.eye(32) * 1.2))])
    )
    model = tiny_model()
    device_map = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    device_map |= {f"model.layers.{i}": "disk" if i > 3 else "cpu" for i in range(NUM_LAYERS)}
    model = accelerate.dispatch_model(model, device_map, offload_dir=tmp_path, force_hooks=True)
    decoder = decoder_of(model)
    view = view_of(decoder, [1, 2], [(on_stream(1, 3, 3), LinearMap(torch.eye(32) * 1.2))])
    assert torch.equal(logits_of(view), expected)
    assert torch.equal(logits_of(model), logits_of(tiny_model()))
