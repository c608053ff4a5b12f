"""The YAML for mergekit beside plain checkpoints, and the formats that a run names."""

import torch
import yaml
from edits import edit_of, in_projection, on_stream
from small_runs import result, run
from test_gguf_layers import EPSILON, loaded
from tiny import config_of
from transformers import AutoModelForCausalLM

import linearpatch
from linearpatch.checkpoint.formats import formats_of
from linearpatch.checkpoint.mergekit import mergekit_yaml
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import FeatureMap, LinearMap

WEIGHT = (in_projection(2, 4), LinearMap(torch.zeros(48, 32)))


def test_slices_are_the_layers_that_stay(tmp_path):
    model = loaded()
    save_checkpoint(tmp_path / "M", model, edit_of([3, 2, 6]), save_format="plain", hub_id="me/dense")
    content = yaml.safe_load((tmp_path / "M" / "mergekit.yml").read_text())
    assert content["merge_method"] == "passthrough"
    assert content["dtype"] == "float32"
    ranges = [[0, 2], [4, 6], [7, 8]]
    assert content["slices"] == [{"sources": [{"model": "me/dense", "layer_range": one}]} for one in ranges]
    copied = torch.nn.ModuleList([model.decoder.layers[i] for start, end in ranges for i in range(start, end)])
    saved = linearpatch.load(tmp_path / "M")
    for layer, expected in zip(saved.model.layers, copied, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, expected.mlp.up_proj.weight)
    (tmp_path / "M" / "mergekit.yml").write_text("mine")  # which nothing loads
    linearpatch.load(tmp_path / "M")


def test_there_is_none_where_mergekit_would_make_another_model():
    dense = loaded().decoder
    assert mergekit_yaml(dense, edit_of([2, 3]), "dense").count("model: dense") == 2
    assert mergekit_yaml(dense, edit_of([2, 3], [WEIGHT]), "dense") is None
    listed = decoder_of(AutoModelForCausalLM.from_config(config_of("qwen2")))  # with layer_types
    assert mergekit_yaml(listed, edit_of([2, 3]), "dense") is None


def test_formats_that_can_hold_an_edit():
    model = loaded()
    layer = (on_stream(2, 4), FeatureMap([torch.eye(32)], True, epsilon=EPSILON))
    assert formats_of(model, edit_of([2, 3], [WEIGHT])) == ["plain", "gguf", "nemotron_nas", "adapter"]
    assert formats_of(model, edit_of([2, 3], [WEIGHT, layer])) == ["gguf", "nemotron_nas", "custom", "adapter"]
    matrix = (on_stream(2, 4), LinearMap(torch.eye(32)))
    assert formats_of(model, edit_of([2, 3], [matrix])) == ["custom", "adapter"]
    qwen = loaded("qwen2")
    assert formats_of(qwen, edit_of([2, 3], [layer])) == ["gguf", "custom", "adapter"]


def test_a_run_says_which_formats_can_hold_its_result(capsys):
    assert run("patch=rotate", "output_dir=one") == 0
    assert result("one")["patch"]["formats"] == ["custom", "adapter"]
    assert "save_format can be custom, adapter" in capsys.readouterr().out
