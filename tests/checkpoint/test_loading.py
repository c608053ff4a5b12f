"""Folders that aren't what they should be: one clear error each, before any weight is used."""

import json

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

import linearpatch
from linearpatch.checkpoint.manifest import _digest, hash_files
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.views import Site


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["custom", "adapter"])
def save_format(request):
    return request.param


@pytest.fixture
def folder(save_format, tmp_path, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")
    patches = [(Site(1, 3, 3), LinearMap(torch.eye(32) * 1.1))]
    folder = tmp_path / "run" / "model"
    save_checkpoint(folder, model, [1, 2], patches, save_format=save_format, name="tiny", source="me/tiny")
    return folder


@pytest.fixture
def use(save_format):
    """Load a folder the way its format asks for."""
    if save_format == "adapter":
        return lambda folder: linearpatch.apply(tiny_model(), folder)
    return linearpatch.load


def edit_manifest(folder, *, signed=False, **changes):
    manifest = folder / "pruning.json"
    content = json.loads(manifest.read_text()) | changes
    if signed:
        del content["sha256"]
        content["sha256"] = _digest(content)
    manifest.write_text(json.dumps(content))


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def test_the_folder_of_the_run_will_do(folder, use):
    assert use(folder.parent).config.num_hidden_layers == 4


def test_a_missing_file_is_named(folder, use):
    name = weights_of(folder).name
    weights_of(folder).unlink()
    with pytest.raises(StorageError, match=f"is incomplete: {name} missing"):
        use(folder)


def test_a_folder_that_was_not_written_to_the_end_is_refused(folder, use):
    (folder / "pruning.json").unlink()
    with pytest.raises(StorageError, match=r"holds no pruning\.json"):
        use(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match="nowhere is not a folder"):
        linearpatch.load(tmp_path / "nowhere")


def test_a_newer_schema_asks_for_a_newer_version(folder, use):
    edit_manifest(folder, schema_version=2)
    with pytest.raises(StorageError, match=r"schema version 2.*Install a newer linearpatch"):
        use(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 1}', "[]"])
def test_a_broken_manifest_is_refused(folder, use, content):
    (folder / "pruning.json").write_text(content)
    with pytest.raises(StorageError, match=r"pruning\.json"):
        use(folder)


def test_a_flipped_byte_is_found(folder, use):
    content = bytearray(weights_of(folder).read_bytes())
    content[-100] ^= 1
    weights_of(folder).write_bytes(bytes(content))
    with pytest.raises(StorageError, match="is damaged"):
        use(folder)


@pytest.mark.parametrize("changes", [{"removed_layers": [1, 3]}, {"patches": []}, {"files": {}}])
def test_a_manifest_that_was_edited_is_found(folder, use, changes):
    edit_manifest(folder, **changes)
    with pytest.raises(StorageError, match=r"pruning\.json doesn't match its own checksum"):
        use(folder)


def test_a_manifest_with_an_unknown_format_is_refused(folder, use):
    edit_manifest(folder, signed=True, format="zip")
    with pytest.raises(StorageError, match="format 'zip'"):
        use(folder)


def test_an_edited_card_is_no_damage(folder, use):
    (folder / "README.md").write_text("mine")
    use(folder)


def test_a_patch_of_the_wrong_shape_is_refused(folder, use):
    tensors = load_file(weights_of(folder))
    name = next(name for name in tensors if name.startswith("0.") or "linear_patch" in name)
    tensors[name] = torch.eye(31)
    save_file(tensors, weights_of(folder), metadata={"format": "pt"})
    edit_manifest(folder, signed=True, files=hash_files(folder))
    with pytest.raises(StorageError, match=r"has the shape \[31, 31\]; the stream needs \[32, 32\]"):
        use(folder)


def test_a_lost_patch_is_refused(folder, use):
    tensors = {n: t for n, t in load_file(weights_of(folder)).items() if "linear_patch" not in n and n[0] != "0"}
    save_file(tensors, weights_of(folder), metadata={"format": "pt"})
    edit_manifest(folder, signed=True, files=hash_files(folder))
    with pytest.raises(StorageError, match="is missing"):
        use(folder)


@pytest.fixture
def adapter(tmp_path, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")
    save_checkpoint(tmp_path / "A", model, [1, 2], save_format="adapter", name="tiny", source="me/tiny")
    return tmp_path / "A"


def test_an_adapter_refuses_another_base(adapter):
    fine_tuned = tiny_model()
    fine_tuned.model.layers[5].mlp.up_proj.weight.data.add_(0.01)
    with pytest.raises(ModelError, match=r"was made from tiny \(me/tiny; llama, 6 layers, .* this model is another"):
        linearpatch.apply(fine_tuned, adapter)
    with pytest.raises(ModelError, match="this model is another: qwen3, 6 layers"):
        linearpatch.apply(tiny_model("qwen3"), adapter)


def test_an_adapter_is_not_loaded_and_a_model_is_not_applied(adapter, tmp_path, decoder):
    with pytest.raises(StorageError, match=r"is an adapter.*linearpatch\.apply"):
        linearpatch.load(adapter)
    with pytest.raises(StorageError, match="is an adapter"):
        linearpatch.load_tokenizer(adapter)
    save_checkpoint(tmp_path / "M", LoadedModel(decoder, byte_tokenizer(), "x"), [1, 2])
    with pytest.raises(StorageError, match=r"is a whole model.*linearpatch\.load"):
        linearpatch.apply(tiny_model(), tmp_path / "M")


def test_the_base_may_have_another_precision(adapter):
    assert weights_hash(tiny_model()) == weights_hash(tiny_model().to(torch.bfloat16))
    linearpatch.apply(tiny_model().to(torch.bfloat16), adapter)


def test_the_base_does_not_change(adapter, decoder):
    base = tiny_model()
    adapted = linearpatch.apply(base, adapter)
    assert decoder_of(adapted).num_layers == 4
    assert decoder_of(base).num_layers == 6
    shared = {parameter.data_ptr() for parameter in base.parameters()}
    assert {parameter.data_ptr() for parameter in adapted.parameters()} <= shared


def test_a_custom_tokenizer_needs_no_remote_code(tmp_path, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "x")
    save_checkpoint(tmp_path / "M", model, [1], [(Site(1, 2, 2), LinearMap(torch.eye(32)))])
    tokenizer = linearpatch.load_tokenizer(tmp_path / "M")
    text = "Ünïcode and spaces  "
    assert tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
