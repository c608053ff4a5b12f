"""Baichuan 2 as a Llama: against a direct computation of its layers, its head and its tokenizer."""

import io
import json
import math
import random
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from small_runs import result, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearpatch.choices import check_names
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.baichuan import BaichuanModel
from linearpatch.models.hub import HubModel
from linearpatch.models.sentencepiece_tokenizer import converted_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

HIDDEN, HEADS, INNER, LAYERS = 32, 4, 48, 4
SENTENCES = (
    "The sea is deep, and 3 fish swim in it.",
    "今天天气很好,我们在2023年发布了新的模型,效果不错!",
    "我们今天发布模型, and 1234567890 is a number.",
    "def f(x):\n    return x  + 1  # spaces",
    "Layers are removed; a patch repairs the interface.",
)
ALPHABET = [*"abcdefgh XYZ.,;()0123456789\n\t今天气很好们模型效果日本語한국éﬁ", "  ", "    ", "👍🏽", "🇨🇳"]


def train_tokenizer(folder: Path, **settings) -> None:
    """A sentencepiece model with the settings of Baichuan 2's: BPE, byte fallback, digits split, nothing normalised."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "split_digits": True,
        "normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "character_coverage": 0.98, "minloglevel": 2, **settings,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 3), model_writer=model, **settings)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    content = {
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False, "use_fast": False,
        "model_max_length": 4096, "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        **{name: token | {"content": text} for name, text in special.items()},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def texts(number: int) -> list[str]:
    draw = random.Random(0)
    drawn = ["".join(draw.choices(ALPHABET, k=draw.randrange(30))) for _ in range(number)]
    return ["", " ", "\n", "  leading", "trailing  ", *SENTENCES, *drawn]


def config(**changes) -> dict:
    return {
        "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": 256,
        "model_max_length": 256, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": 420,
        **changes,
    }  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape, scale=0.2):
        return torch.randn(*shape, generator=generator) * scale

    tensors = {"model.embed_tokens.weight": drawn(420, HIDDEN), "lm_head.weight": drawn(420, HIDDEN, scale=2.0)}
    tensors["model.norm.weight"] = 1 + drawn(HIDDEN)
    for layer in range(LAYERS):
        shapes = {
            "self_attn.W_pack": (3 * HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
        }  # fmt: skip
        tensors |= {f"model.layers.{layer}.{name}.weight": drawn(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + drawn(HIDDEN)
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(HIDDEN // HEADS // 2)
    return tensors


def write(folder: Path, *, pickled: bool = False, **changes) -> Path:
    """A checkpoint as Baichuan 2's repository has it, its weights in two files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    generation = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "user_token_id": 195, "temperature": 0.3}
    (folder / "generation_config.json").write_text(json.dumps(generation | {"top_p": 0.85, "do_sample": True}))
    train_tokenizer(folder)
    names = sorted(weights())
    suffix, stem = ("bin", "pytorch_model") if pickled else ("safetensors", "model")
    places = {}
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{index:05d}-of-00002.{suffix}"
        places |= dict.fromkeys(part, file)
        tensors = {name: weights()[name] for name in part}
        torch.save(tensors, folder / file) if pickled else save_file(tensors, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "modeling_baichuan.py").write_text("raise SystemExit('code of the repository was run')\n")
    return folder


def direct_logits(tokens: list[int]) -> torch.Tensor:
    """What Baichuan 2 7B computes, one position, head and pair of channels after the other, in fp64."""
    tensors = {name: value.double() for name, value in weights().items()}

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[name]

    def rotated(vector, position):
        size, turned = len(vector) // 2, vector.clone()
        for pair in range(size):
            angle = position * 10_000.0 ** (-pair / size)
            a, b = vector[pair], vector[pair + size]
            turned[pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[pair + size] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    stream = tensors["model.embed_tokens.weight"][tokens]
    width = HIDDEN // HEADS
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        packed = norm(stream, f"{name}input_layernorm.weight") @ tensors[f"{name}self_attn.W_pack.weight"].T
        query, key, value = packed[:, :HIDDEN], packed[:, HIDDEN : 2 * HIDDEN], packed[:, 2 * HIDDEN :]
        attended = torch.zeros_like(stream)
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            for position in range(len(tokens)):
                own = rotated(query[position, part], position)
                scores = [own @ rotated(key[before, part], before) / width**0.5 for before in range(position + 1)]
                shares = torch.stack(scores).softmax(0)
                attended[position, part] = shares @ value[: position + 1, part]
        stream = stream + attended @ tensors[f"{name}self_attn.o_proj.weight"].T
        normed = norm(stream, f"{name}post_attention_layernorm.weight")
        gate, up = (normed @ tensors[f"{name}mlp.{one}_proj.weight"].T for one in ("gate", "up"))
        stream = stream + (gate * torch.sigmoid(gate) * up) @ tensors[f"{name}mlp.down_proj.weight"].T
    head = tensors["lm_head.weight"]
    return norm(stream, "model.norm.weight") @ (head / head.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_the_converted_model_computes_what_baichuan_does(tmp_path, pickled):
    folder = write(tmp_path / "baichuan", pickled=pickled)
    model = BaichuanModel(path=str(folder), allow_bin=pickled).load(tmp_path / "cache")
    tokens = [1, 17, 300, 5, 5, 261, 419, 40, 8]
    logits = model.decoder.model(torch.tensor([tokens])).logits[0]
    assert model.decoder.model.config.model_type == "llama"
    assert logits == pytest.approx(direct_logits(tokens), abs=1e-5)


def test_both_kinds_of_files_give_the_same_weights(tmp_path):
    folders = [
        BaichuanModel(path=str(write(tmp_path / name, pickled=pickled)), allow_bin=True).checkpoint(tmp_path / "cache")
        for name, pickled in (("a", False), ("b", True))
    ]
    first, second = (
        {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        for folder in folders
    )
    assert folders[0] != folders[1]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_converted_is_kept_until_a_file_changes(tmp_path):
    folder, cache = write(tmp_path / "baichuan"), tmp_path / "cache"
    model = BaichuanModel(path=str(folder))
    assert model.tokenizer(cache) is None
    first = model.checkpoint(cache)
    written = (first / "config.json").stat().st_mtime_ns
    assert model.checkpoint(cache) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    assert model.tokenizer(cache).bos_token == "<s>"
    (folder / "config.json").write_text(json.dumps(config(rms_norm_eps=1e-5)))
    assert model.checkpoint(cache) != first


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    folder = write(tmp_path / "baichuan", intermediate_size=64)
    with pytest.raises(ModelError, match=r"becomes .* of shape .* has one of shape"):
        BaichuanModel(path=str(folder)).load(tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_missing_weights_are_named(tmp_path):
    folder = write(tmp_path / "baichuan")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights for"):
        BaichuanModel(path=str(folder)).load(tmp_path / "cache")


def test_pickled_weights_need_permission(tmp_path):
    folder = write(tmp_path / "baichuan", pickled=True)
    with pytest.raises(ModelError, match=r"model\.allow_bin=true"):
        BaichuanModel(path=str(folder)).load(tmp_path / "cache")


def test_a_pickle_of_anything_but_tensors_is_rejected_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    folder = write(tmp_path / "baichuan", pickled=True)
    torch.save({"model.norm.weight": Harmful()}, folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ModelError, match="can't be read as tensors alone"):
        BaichuanModel(path=str(folder), allow_bin=True).load(tmp_path / "cache")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 5120, "max_position_embeddings": None}, "ALiBi"),
        ({"architectures": ["BaiChuanForCausalLM"]}, "Baichuan 1 isn't supported"),
        ({"model_type": "llama"}, "model=hub"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_other_models_are_rejected_by_name(tmp_path, changes, message):
    folder = write(tmp_path / "baichuan")
    content = {name: value for name, value in config(**changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        BaichuanModel(path=str(folder)).config(tmp_path / "cache")


def test_a_hub_id_without_the_hub_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path=FOLDER"):
        BaichuanModel(path="nobody/baichuan").config(tmp_path / "cache")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_dummy_prefix": True},
        {"user_defined_symbols": ["<reserved_106>", "▁▁▁▁"]},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "add_dummy_prefix": True},
        {"byte_fallback": False, "vocab_size": 240},
    ],
    ids=["baichuan2", "dummy prefix", "user-defined symbols", "normalised", "no bytes"],
)
def test_the_tokenizer_gives_sentencepieces_ids(tmp_path, settings):
    train_tokenizer(tmp_path, **settings)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    converted_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in [*texts(300), "<reserved_106>hello<reserved_106> x"]:
        ids = tokenizer(text).input_ids
        assert ids == reference.encode(text), text
        if tokenizer.unk_token_id not in ids and "normalization_rule_name" not in settings:
            assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_special_tokens_and_their_policy_are_kept(tmp_path, adds_bos):
    train_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_bos_token": adds_bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    converted_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.model_max_length == 4096
    assert (tokenizer("deep").input_ids[0] == 1) is adds_bos
    ids = tokenizer("deep</s>", add_special_tokens=False).input_ids
    assert ids[-1] == 2  # recognised in a text, as by the original
    assert tokenizer.decode(ids, skip_special_tokens=True) == "deep"


def test_a_model_that_is_not_bpe_is_rejected(tmp_path):
    train_tokenizer(tmp_path, model_type="unigram", vocab_size=330)
    with pytest.raises(ModelError, match="not BPE"):
        converted_tokenizer(tmp_path)


def test_symbols_that_a_conversion_would_tokenize_otherwise_are_noticed(tmp_path):
    train_tokenizer(tmp_path, add_dummy_prefix=True, user_defined_symbols=["<reserved_106>"])
    with pytest.raises(ModelError, match="can't be converted exactly"):
        converted_tokenizer(tmp_path)


@pytest.mark.slow
def test_a_run_prunes_patches_saves_and_reloads_it(tmp_path):
    folder = write(tmp_path / "baichuan")
    places = [f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache"]
    chosen = ["model=baichuan2_7b", f"model.path={folder}", "model.dtype=float32", "model.name=tiny", "patch=mlp_lstsq"]
    assert run(*chosen, *places, "save_model=true", "num_pruned_layers=2") == 0
    assert result(tmp_path / "D")["model"]["num_layers"] == LAYERS
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "D" / "model")
    assert saved.config.model_type == "llama"
    assert len(saved.model.layers) == LAYERS - 2
    assert AutoTokenizer.from_pretrained(tmp_path / "D" / "model")("deep").input_ids


def test_a_llama_is_no_baichuan(tmp_path):
    tiny_model().save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="model=hub"):
        BaichuanModel(path=str(tmp_path / "llama")).load(tmp_path / "cache")


@pytest.mark.parametrize("trusted", [False, True])
def test_the_hub_model_names_the_component_that_converts_it(tmp_path, trusted):
    folder = write(tmp_path / "model")
    with pytest.raises(ModelError, match=f"model=baichuan model.path={folder}"):
        HubModel(path=str(folder), trust_remote_code=trusted).config(tmp_path)


def test_the_13b_is_rejected_by_name_with_its_reason():
    with pytest.raises(ConfigError, match=r"ALiBi.*baichuan2_7b"):
        check_names(["model=baichuan2_13b"])
