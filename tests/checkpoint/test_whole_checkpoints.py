"""Checkpoints that load by themselves: the configuration and the weights are those of one model, and no code is run."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from edits import edit_of, on_stream
from safetensors.torch import load_file, save_file
from tampering import edit_config, edit_manifest, resign
from transformers import PreTrainedModel

import linearpatch
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import LinearPatchError, ModelError
from linearpatch.models.hub import HubModel
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.random import byte_tokenizer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plain(tmp_path, decoder):
    save_checkpoint(tmp_path / "P", LoadedModel(decoder, byte_tokenizer(), "x"), edit_of([1, 2]), name="tiny")
    return tmp_path / "P"


@pytest.fixture(params=["plain", "custom"])
def whole(request, plain, tmp_path, decoder):
    """A checkpoint that loads by itself."""
    if request.param == "plain":
        return plain
    model = LoadedModel(decoder, byte_tokenizer(), "x")
    patches = [(on_stream(1, 3, 3), LinearMap(torch.eye(32)))]
    save_checkpoint(tmp_path / "C", model, edit_of([1, 2], patches), save_format="custom", name="tiny")
    return tmp_path / "C"


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 99}, {"num_hidden_layers": 3}, {"hidden_size": 64}, {"model_type": "qwen2"}]
)
def test_a_configuration_of_another_model_is_rejected(whole, changes, monkeypatch):
    edit_config(whole, **changes)
    resign(whole)
    monkeypatch.setattr(PreTrainedModel, "__init__", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ModelError, match=next(iter(changes))):
        linearpatch.load(whole)


def test_weights_that_are_missing_are_rejected(whole):
    """The manifest, too, says that there are 99 layers."""
    edit_config(whole, num_hidden_layers=99, layer_types=None)
    base = json.loads((whole / "pruning.json").read_text())["base"]
    resign(whole, base=base | {"num_layers": 101})
    with pytest.raises(ModelError, match=r"weights of the model are not in its files \(model\.layers\.10\."):
        linearpatch.load(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "are not in its files"),
        (lambda tensors: tensors.update(other=torch.ones(3)), "have no place in the model"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}), "norm.weight"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_weights_of_another_model_are_rejected(whole, change, message):
    tensors = load_file(whole / "model.safetensors")
    change(tensors)
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    resign(whole)
    with pytest.raises(ModelError, match=message):
        linearpatch.load(whole)


def test_an_unknown_family_is_named(whole):
    base = json.loads((whole / "pruning.json").read_text())["base"]
    edit_manifest(whole, signed=True, base=base | {"model_type": "nonsense"})
    for use in (linearpatch.load, linearpatch.load_tokenizer):
        with pytest.raises(ModelError, match="family 'nonsense'"):
            use(whole)


HOSTILE = """
from pathlib import Path
Path({sign!r}).touch()
from transformers import PreTrainedTokenizerFast as Stranger
"""


def make_hostile(folder, sign):
    """Let a folder's tokenizer and configuration be classes of its own."""
    (folder / "stranger.py").write_text(HOSTILE.format(sign=str(sign)))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Stranger", "auto_map": {"AutoTokenizer": ["stranger.Stranger", "stranger.Stranger"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    edit_config(folder, auto_map={"AutoConfig": "stranger.S", "AutoModelForCausalLM": "stranger.S"})


@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_of_a_checkpoint_is_not_run(whole, tmp_path, monkeypatch, answer):
    """Not even where somebody would answer yes to a question."""
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    make_hostile(whole, tmp_path / "ran")
    resign(whole)
    for use in (linearpatch.load, linearpatch.load_tokenizer):
        with suppress(LinearPatchError):
            use(whole)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_of_a_dense_model_is_not_run_unless_asked_for(plain, tmp_path, monkeypatch, answer):
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    make_hostile(plain, tmp_path / "ran")
    for use in (HubModel.config, HubModel.load):
        with suppress(LinearPatchError):
            use(HubModel(path=str(plain)), tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_every_call_says_whether_remote_code_is_trusted():
    """transformers asks on a terminal where nothing is said."""
    calls = re.compile(r"Auto(?:Tokenizer|Config|ModelForCausalLM)\.from_pretrained\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
    package = Path(linearpatch.__file__).parent
    for file in package.rglob("*.py"):
        for found in calls.finditer(file.read_text()):
            said = ("trust_remote_code", "**source", "**self._source", "**settings")
            assert file.name == "card.py" or any(words in found[1] for words in said), f"{file}: {found[0]}"
