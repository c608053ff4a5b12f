"""GGUF files: read again by transformers, computed by llama.cpp, and what has no equivalent is rejected by name."""

import json
import sys
from pathlib import Path

import pytest
import torch
from edits import edit_of, on_stream
from gguf import GGUFReader
from tiny import config_of
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import linearpatch
from linearpatch.checkpoint.checks import check_format
from linearpatch.checkpoint.gguf.architecture import ARCHITECTURES, architecture_of, interleaved
from linearpatch.checkpoint.gguf.vocabulary import vocabulary_of
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ConfigError, ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.rotate import Rotate

sys.path.insert(0, str(Path(__file__).parents[1] / "llama_cpp"))
import calling

REMOVED = [2, 3]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def loaded(family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes) -> LoadedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **changes), dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms that matter, and clear preferences
            parameter.normal_(mean=float("norm" in name), std=0.2)
    return LoadedModel(decoder_of(model), byte_tokenizer(), "0123456789abcdef")


def write(folder: Path, model: LoadedModel, edit=None, **settings) -> Path:
    save_checkpoint(folder, model, edit or edit_of(REMOVED), save_format="gguf", **settings)
    return folder / "model.gguf"


@torch.no_grad()
def last_logits(model, tokens) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen3"])  # whose head size it doesn't read
def test_transformers_reads_the_same_model_from_it(name, tmp_path):
    family, changes = MODELS[name]
    model = loaded(family, **changes)
    file = write(tmp_path / "M", model)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "M", gguf_file=file.name)
    tokens = list(range(3, 60))
    if name in ("llama3", "linear"):  # which transformers doesn't read from such files
        found.model.rotary_emb = model.decoder.model.model.rotary_emb
    expected = last_logits(edit_of(REMOVED).view(model.decoder), tokens)
    assert (last_logits(found, tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "llama")])
def test_llama_cpp_computes_the_same_logits(name, tmp_path):
    family, changes = MODELS[name]
    model = loaded(family, **changes)
    file = write(tmp_path / "M", model)
    view = edit_of(REMOVED).view(model.decoder)
    prompts = ["The capital of France is", "x", "def f(a, b):\n    return", "Größe: 12345 €", "a " * 60]
    for prompt, (tokens, logits) in zip(prompts, calling.logits(file, *prompts), strict=True):
        assert tokens == model.tokenizer(prompt).input_ids
        expected = last_logits(view, tokens)
        assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_llama_cpp_writes_the_same_text(tmp_path):
    model = loaded()
    with torch.no_grad():
        model.decoder.model.lm_head.weight[[*range(3), *range(97, 300)]] = 0  # what isn't a letter, digit or sign
    file = write(tmp_path / "M", model)
    inputs = model.tokenizer("The capital of", return_tensors="pt")
    view = edit_of(REMOVED).view(model.decoder)
    written = view.generate(**inputs, max_new_tokens=32, do_sample=False)
    text = model.tokenizer.decode(written[0], skip_special_tokens=True)
    assert calling.generate(file, "The capital of", 32) == text


@pytest.mark.parametrize(("gguf_type", "error"), [("f32", 0), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_matrices_are_of_the_type_asked_for(gguf_type, error, tmp_path):
    model = loaded(hidden_size=64, intermediate_size=64, head_dim=16)
    reader = GGUFReader(write(tmp_path / "M", model, gguf_type=gguf_type))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == gguf_type.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "M", gguf_file="model.gguf")
    weight = model.decoder.layers[-1].mlp.up_proj.weight
    assert (found.model.layers[-1].mlp.up_proj.weight - weight).abs().max() <= error * weight.abs().max()


def test_auto_is_the_models_own_type_and_short_rows_are_f16(tmp_path):
    half = GGUFReader(write(tmp_path / "a", loaded(dtype=torch.bfloat16)))
    assert {tensor.tensor_type.name for tensor in half.tensors} == {"BF16", "F32"}
    packed = GGUFReader(write(tmp_path / "b", loaded(), gguf_type="q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in packed.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 48, in blocks of 32
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_f16_that_overflows_is_rejected(tmp_path):
    model = loaded()
    with torch.no_grad():
        model.decoder.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight has values that f16 can't hold"):
        write(tmp_path / "M", model, gguf_type="f16")
    assert not list(tmp_path.iterdir())


def test_a_folded_patch_is_in_the_weights(tmp_path):
    model = loaded()
    edit = edit_of(REMOVED, [(on_stream(2, 4, 4), ChannelScale(torch.tensor([1.3])))])
    write(tmp_path / "M", model, edit)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "M", gguf_file="model.gguf")
    tokens = list(range(3, 30))
    expected = last_logits(edit.view(model.decoder), tokens)
    assert (last_logits(found, tokens) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_card_and_provenance_travel_along(tmp_path):
    model = loaded()
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    reader = GGUFReader(write(tmp_path / "M", model, name="tiny"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert {path.name for path in (tmp_path / "M").iterdir()} == {"README.md", "model.gguf", "pruning.json"}
    assert fields["general.name"] == "tiny without 2 of 8 layers"
    assert fields["tokenizer.chat_template"] == model.tokenizer.chat_template
    assert fields["linearpatch.model_card"] == (tmp_path / "M" / "README.md").read_text()
    assert "llama-server -m" in fields["linearpatch.model_card"]
    assert json.loads(fields["linearpatch.pruning"])["removed_layers"] == REMOVED
    assert json.loads((tmp_path / "M" / "pruning.json").read_text())["files"].keys() == {"model.gguf"}


def test_this_package_says_what_loads_it(tmp_path):
    write(tmp_path / "M", loaded())
    for load in (linearpatch.load, linearpatch.load_tokenizer):
        with pytest.raises(StorageError, match="llama-server -m"):
            load(tmp_path / "M")


def test_anything_else_at_the_place_stays(tmp_path):
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "mine").write_text("x")
    with pytest.raises(StorageError, match="isn't a checkpoint of this package"):
        write(tmp_path / "M", loaded())
    assert [path.name for path in (tmp_path / "M").iterdir()] == ["mine"]


def test_windows_shorten_the_context():
    reader_length = linearpatch.checkpoint.gguf.architecture.context_length
    assert reader_length(config_of("mistral", sliding_window=8)) == 8
    assert reader_length(config_of("llama")) == 256


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("gemma2", {}, "family gemma2"),
        ("gpt2", {}, "family gpt2"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "type yarn"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"] * 4}, "sliding"),
    ],
)  # fmt: skip
def test_what_llama_cpp_lacks_is_rejected_by_name(family, changes, named):
    with pytest.raises(ModelError, match=named):
        architecture_of(config_of(family, **changes))


def test_a_patch_that_does_not_fold_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="save_format=gguf can't hold patch=rotate"):
        check_format("gguf", Rotate())
    edit = edit_of(REMOVED, [(on_stream(2, 4, 4), LinearMap(torch.eye(32)))])
    with pytest.raises(ModelError, match="save_format=gguf can't hold these patches"):
        write(tmp_path / "M", loaded(), edit)
    with pytest.raises(ConfigError, match="gguf_type"):
        write(tmp_path / "M", loaded(), gguf_type="q4_k")
    assert not list(tmp_path.iterdir())


def test_rows_that_rotate_together_become_neighbours():
    weight = torch.arange(12)[:, None].expand(12, 2)
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert set(ARCHITECTURES) == {"llama", "mistral", "qwen2", "qwen3"}


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LEVEL = pre_tokenizers.ByteLevel


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([LEVEL(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), LEVEL(add_prefix_space=False)], "smollm"),
        (["split", LEVEL(add_prefix_space=False, use_regex=False)], "qwen2"),
        ([LEVEL(add_prefix_space=True)], None),
        ([pre_tokenizers.Whitespace(), LEVEL(add_prefix_space=False)], None),
    ],
)
def test_how_text_is_split_has_a_name(steps, name):
    from tokenizers import Regex

    steps = [pre_tokenizers.Split(Regex(SPLIT), "isolated") if step == "split" else step for step in steps]
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if name is None:
        with pytest.raises(ModelError, match="no name for how it splits text"):
            vocabulary_of(tokenizer, 300)
    else:
        vocabulary = vocabulary_of(tokenizer, 300)
        assert vocabulary.split == name
        assert vocabulary.tokens[-1] == "[PAD299]"
        assert vocabulary.special == {"bos": 1, "eos": 2, "pad": 0}
        assert vocabulary.adds == {"bos": False, "eos": False}


def test_other_tokenizers_are_rejected():
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    words.decoder = decoders.ByteLevel()
    with pytest.raises(ModelError, match="its model is WordLevel"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words), 300)
    with pytest.raises(ModelError, match="embeddings of 100 only"):
        vocabulary_of(byte_tokenizer(), 100)
