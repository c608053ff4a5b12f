"""Patches as layers of their own in a GGUF file: computed by llama.cpp, or rejected before anything is written."""

import sys
from pathlib import Path

import pytest
import torch
from edits import edit_of, in_attention_projection, in_projection, on_mlp, on_stream
from gguf import GGUFReader
from tiny import config_of
from transformers import AutoModelForCausalLM

from linearpatch.checkpoint.checks import check_format
from linearpatch.checkpoint.gguf.architecture import WITH_MIXED_LAYERS
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of, norm_epsilon
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import ChannelScale, ChannelShift, FeatureMap, GatedMlp, LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.normed_refit import NormedRefit

sys.path.insert(0, str(Path(__file__).parents[1] / "llama_cpp"))
import calling

EPSILON = 1e-2  # large, so that another one would show
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
}


def loaded(name: str = "llama") -> LoadedModel:
    family, changes = FAMILIES[name]
    torch.manual_seed(0)
    config = config_of(family, rms_norm_eps=EPSILON, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(mean=float("norm" in parameter_name), std=0.2)
    return LoadedModel(decoder_of(model), byte_tokenizer(), "0123456789abcdef")


def linear(*, bias: bool = False, rank: int | None = None, epsilon: float = EPSILON) -> FeatureMap:
    maps = [torch.randn(32, 32) / 4] if rank is None else [torch.randn(32, rank) / 4, torch.randn(rank, 32) / 4]
    return FeatureMap(maps, True, bias=torch.randn(32) if bias else None, epsilon=epsilon)


def mlp(*, bias: bool = False) -> GatedMlp:
    inward, outward = torch.randn(2, 32, 20) / 4, torch.randn(20, 32) / 2
    return GatedMlp(*inward, outward, torch.randn(32) if bias else None, EPSILON)


def edits():
    torch.manual_seed(1)
    return {
        "one": edit_of([2, 3], [(in_projection(2, 4), LinearMap(torch.randn(48, 32) / 8)),
                                (on_stream(2, 4), linear(bias=True))]),
        "three": edit_of([0, 2, 3, 7], [(on_stream(0, 1), linear()), (on_stream(2, 4), mlp(bias=True)),
                                        (on_stream(7, 8), linear(rank=5, bias=True))]),
        "several at one": edit_of([2, 3], [(on_stream(2, 3, 4), linear()), (on_stream(3, 4), linear(bias=True))]),
        "mlp": edit_of([2, 3], [(on_stream(2, 4), mlp())]),
        "sublayers": edit_of(["1.attention", "2.mlp", "3.attention", 5, "6.attention", "7.mlp"],
                             [(on_stream(1, 1.5), linear(bias=True)), (on_stream(6, 6.5), linear()),
                              (on_stream(2.5, 3.5), ChannelShift(torch.randn(32))), (on_stream(7.5, 8), mlp())]),
        "refitted attention": edit_of(["3.mlp"], [(in_attention_projection(3), LinearMap(torch.randn(32, 32) / 8))]),
    }  # fmt: skip


def write(folder: Path, model: LoadedModel, edit, **settings) -> Path:
    save_checkpoint(folder, model, edit, save_format="gguf", **settings)
    return folder / "model.gguf"


@torch.no_grad()
def last_logits(model, tokens) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()


SLOW = [("tied", "one"), ("mistral", "three"), ("qwen2", "three"), ("llama", "several at one"), ("llama", "mlp"),
        ("qwen2", "sublayers")]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "one"),
        ("llama", "three"),
        ("llama", "sublayers"),
        ("llama", "refitted attention"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
    ],
)
def test_llama_cpp_computes_the_same_logits(family, name, tmp_path):
    model, edit = loaded(family), edits()[name]
    file = write(tmp_path / "M", model, edit)
    view = edit.view(model.decoder)
    prompts = ["The capital of France is", "x", "def f(a, b):\n    return", "Größe: 12345 €", "a " * 60]
    for prompt, (tokens, logits) in zip(prompts, calling.logits(file, *prompts), strict=True):
        assert tokens == model.tokenizer(prompt).input_ids
        expected = last_logits(view, tokens)
        assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()
        without = last_logits(edit.with_operators(()).view(model.decoder), tokens)
        assert (without - expected).abs().max() > 1e-2 * expected.abs().max()


def test_llama_cpp_writes_the_same_text(tmp_path):
    model, edit = loaded(), edits()["three"]
    with torch.no_grad():
        model.decoder.model.lm_head.weight[[*range(3), *range(97, 300)]] = 0  # what isn't a letter, digit or sign
    file = write(tmp_path / "M", model, edit)
    inputs = model.tokenizer("The capital of", return_tensors="pt")
    written = edit.view(model.decoder).generate(**inputs, max_new_tokens=32, do_sample=False)
    assert calling.generate(file, "The capital of", 32) == model.tokenizer.decode(written[0], skip_special_tokens=True)


def test_each_layer_has_its_sizes(tmp_path):
    model = loaded()
    reader = GGUFReader(write(tmp_path / "M", model, edits()["three"]))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "deci"
    assert fields["deci.block_count"] == 4 + 3
    assert fields["deci.attention.head_count"] == [4, 4, 0, 4, 4, 4, 4]
    assert fields["deci.attention.head_count_kv"] == [0, 2, 0, 2, 2, 2, 0]
    assert fields["deci.feed_forward_length"] == [32, 48, 20, 48, 48, 48, 32]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    matrix = edits()["three"].operators[0].module.weights[0]
    assert torch.equal(torch.tensor(tensors["blk.0.attn_output.weight"].data), matrix)
    assert (tensors["blk.0.attn_norm.weight"].data == 1).all()


def test_packed_types_hold_them(tmp_path):
    reader = GGUFReader(write(tmp_path / "M", loaded(), edits()["one"], gguf_type="q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.2.attn_output.weight"] == kinds["blk.2.ffn_down.weight"] == "Q8_0"


def test_the_card_says_what_it_needs(tmp_path):
    write(tmp_path / "M", loaded(), edits()["one"])
    card = (tmp_path / "M" / "README.md").read_text()
    assert "layers of their own" in card
    assert "folded into existing weights" not in card


def rejected(model, edit, named, tmp_path):
    with pytest.raises(ModelError, match=named):
        write(tmp_path / "M", model, edit)
    assert not list(tmp_path.iterdir())


def test_what_has_no_equivalent_is_rejected_before_anything_is_written(tmp_path):
    model = loaded()
    rejected(model, edit_of([0], [(on_stream(0, 1), mlp())]), "first layer without attention", tmp_path)
    rejected(model, edit_of(["0.attention"]), "first layer without attention", tmp_path)
    rejected(model, edit_of([2], [(on_stream(2, 3), linear(epsilon=1e-6))]), "adds 1e-06 to mean squares", tmp_path)
    scaled = FeatureMap([torch.eye(32)], True, torch.ones(32), epsilon=EPSILON)
    rejected(model, edit_of([2], [(on_stream(2, 3), scaled)]), "can't hold these patches", tmp_path)
    unnormed = FeatureMap([torch.eye(32)], False, epsilon=EPSILON)
    rejected(model, edit_of([2], [(on_stream(2, 3), unnormed)]), "can't hold these patches", tmp_path)
    for site, operator in ((on_stream(4, 5), ChannelScale(torch.ones(1))), (on_mlp(4, 5), LinearMap(torch.eye(32)))):
        mixed = edit_of([2, 4], [(on_stream(2, 3), linear()), (site, operator)])
        rejected(model, mixed, "patches of one kind", tmp_path)


def test_families_without_such_layers_are_rejected_by_name(tmp_path):
    assert set(WITH_MIXED_LAYERS) == {"llama", "mistral", "qwen2"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("qwen3")).eval()
    model = LoadedModel(decoder_of(model), byte_tokenizer(), "0123456789abcdef")
    edit = edit_of([2], [(on_stream(2, 3), linear(epsilon=norm_epsilon(model.decoder)))])
    rejected(
        model, edit, "family qwen3 with layers that lack.*or patches as layers of their own.*patch=mlp_refit", tmp_path
    )


def test_only_patches_that_are_layers_pass_the_early_check():
    check_format("gguf", NormedRefit())
    check_format("gguf", LeastSquares(features="rms_normalised"), trainable="patch")
    with pytest.raises(ConfigError, match="layers of their own: normed_refit"):
        check_format("gguf", LeastSquares())
    with pytest.raises(ConfigError, match="save_format=plain can't hold patch=normed_refit"):
        check_format("plain", NormedRefit())
