"""What is saved is what was measured: configurations, constants and files."""

import pytest
import torch
from edits import edit_of, view_of
from tiny import model_of
from transformers import AutoModelForCausalLM, PreTrainedConfig

import linearpatch
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of, text_config
from linearpatch.models.layer_config import propose
from linearpatch.models.model import LoadedModel, ready
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.rebuilding import check_rebuilt, check_removal

TOKENS = torch.randint(3, 259, (2, 14), generator=torch.Generator().manual_seed(3))


def loaded(family: str, tmp_path, **settings) -> LoadedModel:
    model_of(family, **settings).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    return ready(model, byte_tokenizer(), "0123456789abcdef")


@torch.no_grad()
def logits_of(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def proposed(kept, num_layers, **fields):
    config = PreTrainedConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    proposal = propose(config, kept, num_layers)
    return {name: proposal.changes.get(name, value) for name, value in fields.items()}, proposal.alternatives


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("attn_layer_indices", [2, 5], [1]),
        ("full_attn_idxs", [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]),
        ("hybrid_layer_ids", [0, 7], [0, 5]),
        ("layer_types", list("abcdefgh"), list("acdegh")),
        ("no_rope_layers", [1, 1, 0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1]),
        ("moe_layer_start_index", 3, 2),
        ("num_dense_layers", 2, 1),
        ("layer_overrides", {"02": "c", "05": "f", "07": "h"}, {"01": "c", "05": "h"}),
        (
            "attention_types",
            [[["g", "l"], 4]],
            [[["g"], 1], [["g"], 1], [["l"], 1], [["g"], 1], [["g"], 1], [["l"], 1]],
        ),
        ("eos_token_id", [1, 2, 3], [1, 2, 3]),
        ("mlp_multipliers", [1.0, 0.5], [1.0, 0.5]),
        ("axial_pos_shape", [2, 4], [2, 4]),
    ],
)
def test_fields_follow_the_kept_layers_by_their_shape(name, before, after):
    changed, _ = proposed([0, 2, 3, 4, 6, 7], 8, **{name: before})
    assert changed[name] == after


def test_a_number_that_may_count_layers_has_several_readings():
    _, alternatives = proposed([0, 2, 3, 4, 6, 7], 8, moe_layer_end_index=6, moe_every_n_layers=1, hidden_size=6)
    assert 4 in alternatives["moe_layer_end_index"]  # the last of the range, layer 6, is the new layer 4
    assert "hidden_size" not in alternatives


@pytest.mark.parametrize("removed", [[1, 4], *(pytest.param(one, marks=pytest.mark.slow) for one in ([0, 4], [6, 7]))])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bamba", {}),
        ("ernie4_5_moe", {}),
        ("ernie4_5_moe", {"moe_layer_end_index": 7}),
        ("gpt_neo", {}),
        ("afmoe", {"num_dense_layers": 3}),
        ("deepseek_v3", {"first_k_dense_replace": 3}),
    ],
)
def test_leading_counts_ranges_and_index_lists_reload(family, settings, removed, tmp_path):
    model = loaded(family, tmp_path, **settings)
    view = view_of(model.decoder, removed)
    check_removal(model.decoder, view, removed)
    save_checkpoint(tmp_path / "model", model, edit_of(removed), save_format="plain")
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(reloaded), logits_of(view))


DEPENDENT = [("diffllama", {}, "lambda_init"), ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaling")]


@pytest.mark.parametrize(("family", "settings", "constant"), DEPENDENT)
@pytest.mark.parametrize("save_format", ["auto", "plain", "custom"])
def test_constants_of_a_layers_position_are_rejected_by_name(family, settings, constant, save_format, tmp_path):
    model = loaded(family, tmp_path, **settings)
    check_removal(model.decoder, view_of(model.decoder, [1, 4]), [1, 4])  # it may be measured
    with pytest.raises(ModelError, match=rf"{constant}.*save_format=adapter.*pruner=tail"):
        save_checkpoint(tmp_path / "model", model, edit_of([1, 4]), save_format=save_format)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("family", "settings", "constant"), DEPENDENT)
def test_what_works_instead_works(family, settings, constant, tmp_path):
    model = loaded(family, tmp_path, **settings)
    save_checkpoint(tmp_path / "adapter", model, edit_of([1, 4]), save_format="adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    adapted = linearpatch.apply(base, tmp_path / "adapter")
    assert torch.equal(logits_of(adapted), logits_of(view_of(model.decoder, [1, 4])))
    save_checkpoint(tmp_path / "model", model, edit_of([6, 7]))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(reloaded), logits_of(view_of(model.decoder, [6, 7])))


def test_arithmetic_that_no_constant_shows_is_found_by_running(tmp_path, monkeypatch):
    """Such as a residual scale over the square root of the number of layers, taken from the configuration."""
    model = loaded("llama", tmp_path)
    view = view_of(model.decoder, [1])

    def scaled(self, *args, **kwargs):
        output = type(self).__base__.forward(self, *args, **kwargs)
        return output * self.residual_scale[0]

    layer_class = type(view.model.layers[0])
    scaled_class = type("Scaled", (layer_class,), {"forward": scaled})
    for layer in view.model.layers:
        layer.__class__ = scaled_class
        layer.residual_scale = [torch.tensor(0.5)]
    with pytest.raises(ModelError, match="logits of a few tokens"):
        check_rebuilt(model.decoder, view, [1])


def test_a_layer_that_later_ones_read_from_is_not_removed(tmp_path):
    model = loaded("llama", tmp_path)
    layers = model.decoder.layers
    layers[2].register_forward_hook(lambda *_: layers[3].__dict__.update(memory=1.0))
    layers[3].register_forward_hook(lambda layer, _, output: output + layer.__dict__.pop("memory", 0.0))
    view = view_of(model.decoder, [2])
    with pytest.raises(ModelError, match=r"Removing layers \[2\] from LlamaForCausalLM changes more"):
        check_removal(model.decoder, view, [2])


def test_what_is_written_is_loaded_again_before_it_replaces_anything(tmp_path, monkeypatch):
    model = loaded("llama", tmp_path)
    save_checkpoint(tmp_path / "model", model, edit_of([1]), save_format="plain")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    save = type(model.decoder.model).save_pretrained

    def altered(self, folder, **settings):
        weight = self.model.layers[0].mlp.down_proj.weight
        kept = weight.detach().clone()
        weight.mul_(1.5)
        save(self, folder, **settings)
        weight.copy_(kept)

    monkeypatch.setattr(type(model.decoder.model), "save_pretrained", altered)
    with pytest.raises(ModelError, match="would load as another model than the one that was measured"):
        save_checkpoint(tmp_path / "model", model, edit_of([2]), save_format="plain")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "llama4_text"])
@pytest.mark.slow
def test_indices_follow_whatever_they_are_called(family, tmp_path):
    view = view_of(loaded(family, tmp_path).decoder, [1, 4])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    cached = view.generate(TOKENS, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, view.generate(TOKENS, attention_mask=mask, use_cache=False, **settings))


def test_the_final_norm_is_what_feeds_the_head(tmp_path):
    names = {
        family: decoder_of(model_of(family)).parts.final_norm
        for family in ("llama", "lfm2", "gpt2", "mamba", "opt", "gpt_neox")
    }
    assert names == {
        "llama": "model.norm",
        "lfm2": "model.embedding_norm",
        "gpt2": "transformer.ln_f",
        "mamba": "backbone.norm_f",
        "opt": "model.decoder.final_layer_norm",
        "gpt_neox": "gpt_neox.final_layer_norm",
    }


def test_a_tokenizer_with_words_beyond_the_embedding_is_rejected(tmp_path):
    model, tokenizer = model_of("llama", vocab_size=259), byte_tokenizer()
    ready(model, tokenizer, "0123456789abcdef")
    tokenizer.add_tokens(["cat", "sat"])
    with pytest.raises(ModelError, match=r"261 tokens.*only 259 rows.*'cat', 'sat'.*resize_token_embeddings"):
        ready(model, tokenizer, "0123456789abcdef")
    special = byte_tokenizer()
    special.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ready(model, special, "0123456789abcdef")  # Gemma 3's text models have one


def test_tables_with_a_part_for_each_layer_are_rejected_when_loading():
    model = model_of("gemma4_text", hidden_size_per_layer_input=8, num_kv_shared_layers=0)
    with pytest.raises(ModelError, match=r"can't lose layers: .*holds a part for each of its 8 layers"):
        ready(model, byte_tokenizer(), "0123456789abcdef")


def test_a_model_that_sees_later_tokens_is_rejected():
    with pytest.raises(ModelError, match="not causal"):
        ready(model_of("bert"), byte_tokenizer(), "0123456789abcdef")


def test_the_configuration_of_a_view_is_its_own(tmp_path):
    model = loaded("bamba", tmp_path)
    before = text_config(model.decoder.model.config).to_dict()
    view_of(model.decoder, [1, 4])
    assert text_config(model.decoder.model.config).to_dict() == before


def test_removing_every_layer_with_a_cache_of_tokens_is_rejected(tmp_path):
    model = loaded("bamba", tmp_path, attn_layer_indices=[2, 5])
    check_removal(model.decoder, view_of(model.decoder, [2]), [2])
    with pytest.raises(ModelError, match=r"can't generate with a cache without layers \[2, 5\]"):
        check_removal(model.decoder, view_of(model.decoder, [2, 5]), [2, 5])
