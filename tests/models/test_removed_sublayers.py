"""Sublayers removed: runner, view and what is loaded again compute the same, with a cache or without."""

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from tiny import model_of
from torch import nn

from linearpatch.distillation.trainable_sets import AllWeights, LoRA
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import cache_of, decoder_of, unwrap
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.modeling_linearpatch import ChannelScale, FeatureMap, LinearMap
from linearpatch.models.passes import record, walk
from linearpatch.models.places import InProjection, OnStream
from linearpatch.models.rebuilding import check_removal
from linearpatch.models.runner import Runner
from linearpatch.models.units import Interface, Unit, interfaces_of, unit_from

TOKENS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(3))
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_text", "granite", "opt", "olmo2")
REMOVED = {
    "attention": ("0.attention", "2.attention", "5.attention"),
    "mlp": ("0.mlp", "3.mlp", "5.mlp"),
    "sublayer": ("1.mlp", "2.attention", "4.attention", "3"),
    "both of a layer": ("2.mlp", "2.attention", "4.mlp"),
}


def edit_of(names, operators=()):
    return Edit.without(map(unit_from, names)).with_operators(operators)


def silenced(model, names):
    """The logits of the dense model in which sublayers add nothing, by their outputs as the families name them."""
    handles = []
    for unit in map(unit_from, names):
        layer = decoder_of(model).layers[unit.layer]
        if unit.part == "layer":
            handles.append(layer.register_forward_hook(lambda _, args, output: args[0]))
        else:
            child = layer.get_submodule(SILENCED[model.config.model_type][unit.part])
            handles.append(child.register_forward_hook(lambda _, __, output: nothing_of(output)))
    try:
        return model(input_ids=TOKENS, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def nothing_of(output):
    return (unwrap(output) * 0, *output[1:]) if isinstance(output, tuple) else output * 0


LLAMA = {"attention": "self_attn", "mlp": "mlp"}
NORMED = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
SILENCED = {
    **dict.fromkeys(("llama", "qwen3", "granite", "mistral", "qwen2", "smollm3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), NORMED),
    "opt": {"attention": "self_attn", "mlp": "fc2"},
}


def operators_at(edit):
    """One of each kind on the stream, and one in the projection before an interface where there is one."""
    generator = torch.Generator().manual_seed(5)
    operators = []
    for at, interface in enumerate(edit.interfaces):
        matrix = torch.eye(32) + torch.randn(32, 32, generator=generator) / 20
        bias = torch.randn(32, generator=generator) / 10
        module = (
            LinearMap(matrix, bias),
            FeatureMap([matrix - torch.eye(32)], True, bias=bias),
            ChannelScale(1 + bias),
        )
        operators.append(
            PlacedOperator(Site(interface, interface.reader, OnStream(interface.reader)), module[at % len(module)])
        )
    return operators


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", REMOVED)
def test_runner_view_and_silenced_dense_model_agree(family, unit):
    model = tiny_model(family)
    dense = decoder_of(model)
    edit = edit_of(REMOVED[unit])
    view = edit.view(dense)
    expected = silenced(model, REMOVED[unit])
    actual = view(input_ids=TOKENS, use_cache=False).logits
    assert torch.allclose(actual, expected, atol=1e-4 * expected.abs().max())
    assert not torch.allclose(model(input_ids=TOKENS).logits, expected, atol=1e-2 * expected.abs().max())
    check_removal(dense, view, edit.removed_layers, (), edit.removed_parts)
    patched = edit.with_operators(operators_at(edit))
    check_runner(dense, patched)
    removed = model.num_parameters() - view.num_parameters()
    assert removed == edit.num_parameters_removed(dense) > 0


def check_runner(dense, edit):
    recording = record(dense, TOKENS)
    runner = Runner(dense, edit)
    stream = runner.run(recording.streams[runner.entry], recording.calls)
    viewed = decoder_of(edit.view(dense))
    expected = record(viewed, TOKENS, before_patches=False).streams[viewed.num_layers]
    assert torch.allclose(stream, expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("unit", REMOVED)
def test_what_is_saved_loads_as_what_was_measured(family, unit, tmp_path):
    dense = decoder_of(tiny_model(family))
    edit = edit_of(REMOVED[unit])
    view = edit.with_operators(operators_at(edit)).view(dense)
    view.save_pretrained(tmp_path)
    loaded = type(view).from_pretrained(tmp_path)
    expected = view(input_ids=TOKENS, use_cache=False).logits
    assert torch.equal(loaded(input_ids=TOKENS, use_cache=False).logits, expected)
    assert torch.allclose(cached(loaded), expected[:, -1:], atol=1e-4 * expected.abs().max())
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in view.named_parameters()}


def cached(model):
    """Logits of the last token, with the others in a cache."""
    output = model(input_ids=TOKENS[:, :-1], use_cache=True)
    return model(input_ids=TOKENS[:, -1:], use_cache=True, **cache_of(output)).logits


SLIDING, FULL = "sliding_attention", "full_attention"
CACHES = {
    "layer 0": ("qwen3", None, (0,)),
    "layers 0 to 4": ("llama", None, (0, 1, 2, 3, 4)),
    "all of one window": ("mistral", None, (0, 3)),
    "first full, sliding window": ("gemma3_text", [SLIDING, SLIDING, FULL] * 2, (0, 2)),
    "all full": ("gemma3_text", [SLIDING, SLIDING, FULL] * 2, (2, 5)),
    "all sliding": ("gemma3_text", [SLIDING, FULL, SLIDING, FULL, FULL, FULL], (0, 2)),
    "all full before sliding": ("gemma3_text", [FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING], (0, 3)),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_removed_attention_keeps_no_keys_and_values(case):
    family, types, layers = CACHES[case]
    model = tiny_model(family, **({"layer_types": types, "sliding_window_pattern": None} if types else {}))
    view = edit_of([f"{layer}.attention" for layer in layers]).view(decoder_of(model))
    expected = view(input_ids=TOKENS, use_cache=False).logits
    assert torch.allclose(cached(view), expected[:, -1:], atol=1e-4 * expected.abs().max())
    cache = view(input_ids=TOKENS, use_cache=True).past_key_values
    assert cache.get_seq_length() == TOKENS.shape[1]
    assert sum(layer.is_initialized for layer in cache.layers) == NUM_LAYERS - len(layers)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(TOKENS)}
    generated = view.generate(TOKENS, **settings)
    assert torch.equal(generated, view.generate(TOKENS, use_cache=False, **settings))
    assert torch.equal(generated, view.generate(TOKENS, cache_implementation="static", **settings))


@pytest.mark.parametrize("names", [("1.attention", "4.mlp"), ("7.attention",), ("0.attention", "6.mlp", "2")])
@pytest.mark.parametrize("family", ["lfm2", "qwen3_next"])
def test_hybrids_lose_what_mixes_their_tokens(family, names):
    model = model_of(family)
    dense = decoder_of(model)
    edit = edit_of(names)
    view = edit.view(dense)
    check_removal(dense, view, edit.removed_layers, (), edit.removed_parts)
    check_runner(dense, edit)
    expected = view(input_ids=TOKENS, use_cache=False).logits
    assert torch.allclose(cached(view), expected[:, -1:], atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("family", ["gptj", "falcon", "gpt_neox"])
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_families_with_parallel_residuals_are_rejected_by_name(family, part):
    dense = decoder_of(tiny_model(family))
    with pytest.raises(ModelError, match=f"{type(dense.layers[0]).__name__} has parallel residuals.*pruner.unit=layer"):
        edit_of([f"2.{part}"]).view(dense)


def test_families_that_add_inside_a_module_are_rejected():
    with pytest.raises(ModelError, match=r"The attention of BloomBlock adds to the stream inside its own module"):
        edit_of(["2.attention"]).view(decoder_of(tiny_model("bloom")))


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["6.mlp"], ConfigError, "Layers .'6.mlp'. don't exist. Allowed: 0 to 5"),
        (["2.mlp", "2.mlp"], ConfigError, "name a layer twice"),
        (["2", "2.mlp"], ConfigError, "name a layer twice"),
        ([f"{layer}.attention" for layer in range(6)], ModelError, "No attention would be left"),
        ([*(f"{layer}.attention" for layer in range(5)), "5"], ModelError, "No attention would be left"),
    ],
)
def test_units_that_cannot_go_together_have_a_sentence(names, error, words):
    with pytest.raises(error, match=words):
        edit_of(names).view(decoder_of(tiny_model()))


def test_a_name_that_is_no_sublayer():
    with pytest.raises(ConfigError, match=r"'3.norm' names no sublayer. Write LAYER.attention or LAYER.mlp"):
        unit_from("3.norm")


def test_interfaces_of_sublayers():
    units = [unit_from(name) for name in ("3.mlp", "4.attention", "1.attention", "6", "7.attention")]
    assert interfaces_of(units) == [Interface(1, 1.5), Interface(3.5, 4.5), Interface(6, 7.5)]
    assert str(Interface(3.5, 4)) == "[3.5, 4)"
    assert Interface(6, 7.5).parts == [Interface(6, 6.5), Interface(6.5, 7), Interface(7, 7.5)]
    assert Interface(6, 8).parts == [Interface(6, 7), Interface(7, 8)]
    edit = edit_of(("2.mlp", "5", "2.attention", "4.mlp"))
    assert edit.removed_layers == (5, 2)
    assert edit.removed_parts == {4: "mlp"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "opt", "granite"])
def test_streams_between_the_sublayers_of_a_layer(family):
    dense = decoder_of(tiny_model(family))
    wrote = []
    child = dense.layers[2].get_submodule(SILENCED[dense.model.config.model_type]["attention"])
    child.register_forward_hook(lambda _, __, output: wrote.append(unwrap(output).clone()))
    seen = {}
    walk(dense, TOKENS, lambda index, hidden, _: seen.update({index: hidden}), between=[2, 4], stop=4.5)
    assert list(seen) == [0, 1, 2, 2.5, 3, 4, 4.5]
    expected = seen[2] + wrote[-1].view_as(seen[2]) * dense.residual_multiplier
    assert torch.allclose(seen[2.5], expected, atol=1e-5 * expected.abs().max())


def test_an_operator_in_the_projection_of_an_attention():
    dense = decoder_of(tiny_model())
    site = Site(Interface(2.5, 3), 3, InProjection(2, "attention"))
    operator = LinearMap(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) / 5)
    edit = edit_of(["2.mlp"], [PlacedOperator(site, operator)])
    check_runner(dense, edit)
    view = edit.view(dense)
    changed = view.model.layers[2].self_attn.o_proj.weight - dense.layers[2].self_attn.o_proj.weight
    assert torch.allclose(changed, operator.weight, atol=1e-5)
    assert isinstance(view.model.layers[2].mlp, nn.Module)
    assert not list(view.model.layers[2].mlp.parameters())


def test_gradients_reach_the_weights_of_what_is_left():
    dense = decoder_of(tiny_model())
    edit = edit_of(["2.attention"])
    recording = record(dense, TOKENS)
    weight = dense.layers[2].mlp.down_proj.weight.requires_grad_()
    Runner(dense, edit).run(recording.streams[2], recording.calls).square().mean().backward()
    assert weight.grad is not None
    assert Unit(2, "attention") in edit.removed


def test_weights_of_removed_sublayers_do_not_train():
    dense = decoder_of(tiny_model())
    edit = edit_of(["2.attention", "4.mlp"])
    names = {(name.layer, name.name) for name in AllWeights().weights(dense, edit, 0)}
    assert (2, "mlp.down_proj.weight") in names
    assert (4, "self_attn.o_proj.weight") in names
    assert not any(layer == 2 and name.startswith(("self_attn", "input_layernorm")) for layer, name in names)
    assert not any(layer == 4 and name.startswith(("mlp", "post_attention_layernorm")) for layer, name in names)
    check_runner(dense, edit.with_weights(LoRA(rank=2).weights(dense, edit, 0)))
