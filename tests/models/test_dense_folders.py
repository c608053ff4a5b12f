"""A folder with a dense model loads whole or is rejected: no weight is random, and none is left over."""

import json

import pytest
import torch
from conftest import FAMILIES, tiny_model
from safetensors.torch import load_file, save_file

from linearpatch.errors import ModelError
from linearpatch.models.hub import HubModel
from linearpatch.models.random import byte_tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, _: config.update(num_hidden_layers=9), "are not in its files"),
        (lambda config, _: config.update(num_hidden_layers=3), "have no place in the model"),
        (lambda _, tensors: tensors.update({"model.layers.0.mlp.up_proj.scales": torch.ones(3)}), "no place"),
        (lambda _, tensors: tensors.pop("lm_head.weight"), r"are not in its files \(lm_head\.weight\)"),
    ],
    ids=["more layers", "fewer layers", "another format", "no head"],
)
def test_a_dense_model_with_random_or_unused_weights_is_rejected(tmp_path, change, message):
    folder = tmp_path / "dense"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        HubModel(path=str(folder)).load(tmp_path / "cache")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
def test_what_a_family_leaves_out_of_its_files_is_not_missed(tmp_path, family, tied):
    folder = tmp_path / "dense"
    tiny_model(family, tie_word_embeddings=tied).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    layer = next(name for name in tensors if ".0." in name).partition(".0.")[0]
    old = {f"{layer}.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.vision_tower.0.weight": torch.ones(3)}
    save_file(tensors | old, folder / "model.safetensors", metadata={"format": "pt"})
    assert HubModel(path=str(folder), attn_implementation="eager").load(tmp_path / "cache").decoder.num_layers == 6
