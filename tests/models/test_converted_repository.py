"""A family added as the guide says, by its own example."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from linearpatch.errors import ModelError
from linearpatch.models.random import byte_tokenizer

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def packed_model():
    """The class that the guide defines."""
    block = next(part for part in GUIDE.read_text().split("```python\n") if part.startswith("# packed.py"))
    source = block.partition("```")[0].replace('@component("model", "packed")\n', "")
    names = {"__name__": __name__}
    exec(compile(source, "packed.py", "exec", dont_inherit=True), names)
    return names["PackedModel"]


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with its projections packed."""
    folder = tmp_path / "packed"
    tiny_model(num_key_value_heads=4).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace(".q_proj.", f".{one}_proj.")) for one in "qkv"]
        weights[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "packed"}))
    return folder


def test_the_guides_example_converts_exactly(packed_model, folder, tmp_path):
    tokens = torch.arange(3, 40)[None]
    loaded = packed_model(path=str(folder)).load(tmp_path / "cache")
    assert torch.equal(loaded.decoder.model(tokens).logits, tiny_model(num_key_value_heads=4)(tokens).logits)
    assert loaded.fingerprint


def test_the_guides_example_rejects_other_models(packed_model, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ModelError, match="Use model=hub"):
        packed_model(path=str(folder)).load(tmp_path / "cache")
