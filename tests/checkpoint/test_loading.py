"""Folders that aren't what they should be: one clear error each, before any weight is used."""

import hashlib
import json
import logging
import os

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, on_stream
from safetensors.torch import load_file, save_file
from tampering import edit_manifest, resign, weights_of

import linearpatch
from linearpatch.checkpoint.manifest import hash_files
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.fingerprint import file_hash, fingerprint_folder, weights_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.random import byte_tokenizer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["custom", "adapter"])
def save_format(request):
    return request.param


@pytest.fixture
def folder(save_format, tmp_path, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")
    patches = [(on_stream(1, 3, 3), LinearMap(torch.eye(32) * 1.1))]
    folder = tmp_path / "run" / "model"
    save_checkpoint(folder, model, edit_of([1, 2], patches), save_format=save_format, name="tiny", source="me/tiny")
    return folder


@pytest.fixture
def use(save_format):
    """Load a folder the way its format asks for."""
    if save_format == "adapter":
        return lambda folder: linearpatch.apply(tiny_model(), folder)
    return linearpatch.load


def test_the_folder_of_the_run_will_do(folder, use):
    assert use(folder.parent).config.num_hidden_layers == 4


def test_a_missing_file_is_named(folder, use):
    name = weights_of(folder).name
    weights_of(folder).unlink()
    with pytest.raises(StorageError, match=f"is incomplete: {name} missing"):
        use(folder)


def test_a_folder_that_was_not_written_to_the_end_is_rejected(folder, use):
    (folder / "pruning.json").unlink()
    with pytest.raises(StorageError, match=r"holds no pruning\.json"):
        use(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match="nowhere is not a folder"):
        linearpatch.load(tmp_path / "nowhere")


def test_a_newer_schema_asks_for_a_newer_version(folder, use):
    edit_manifest(folder, schema_version=3)
    with pytest.raises(StorageError, match=r"schema version 3.*Install a newer linearpatch"):
        use(folder)


def test_an_older_schema_says_what_loads_it(folder, use):
    edit_manifest(folder, schema_version=1)
    with pytest.raises(StorageError, match=r"schema version 1.*load a whole checkpoint with transformers alone"):
        use(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 1}', "[]"])
def test_a_broken_manifest_is_rejected(folder, use, content):
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


def test_a_manifest_with_an_unknown_format_is_rejected(folder, use):
    edit_manifest(folder, signed=True, format="zip")
    with pytest.raises(StorageError, match="format 'zip'"):
        use(folder)


def test_an_edited_card_is_no_damage(folder, use):
    (folder / "README.md").write_text("mine")
    use(folder)


def test_a_patch_of_the_wrong_shape_is_rejected(folder, use):
    tensors = load_file(weights_of(folder))
    name = next(name for name in tensors if name.startswith("0.") or "linear_patch" in name)
    tensors[name] = torch.eye(31)
    save_file(tensors, weights_of(folder), metadata={"format": "pt"})
    edit_manifest(folder, signed=True, files=hash_files(folder))
    with pytest.raises(StorageError, match=r"has the shape \[31, 31\]; the stream needs \[32, 32\]"):
        use(folder)


def test_a_lost_patch_is_rejected(folder, use):
    tensors = {n: t for n, t in load_file(weights_of(folder)).items() if "linear_patch" not in n and n[0] != "0"}
    save_file(tensors, weights_of(folder), metadata={"format": "pt"})
    edit_manifest(folder, signed=True, files=hash_files(folder))
    with pytest.raises(StorageError, match="is missing"):
        use(folder)


@pytest.fixture
def adapter(tmp_path, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")
    save_checkpoint(tmp_path / "A", model, edit_of([1, 2]), save_format="adapter", name="tiny", source="me/tiny")
    return tmp_path / "A"


def test_an_adapter_rejects_another_base(adapter):
    fine_tuned = tiny_model()
    fine_tuned.model.layers[5].mlp.up_proj.weight.data.add_(0.01)
    with pytest.raises(
        ModelError, match=r"was made from tiny \(me/tiny; llama, 6 layers, .* this is a different model"
    ):
        linearpatch.apply(fine_tuned, adapter)
    with pytest.raises(ModelError, match="this is a different model: qwen3, 6 layers"):
        linearpatch.apply(tiny_model("qwen3"), adapter)


def test_an_adapter_is_not_loaded_and_a_model_is_not_applied(adapter, tmp_path, decoder):
    with pytest.raises(StorageError, match=r"is an adapter.*linearpatch\.apply"):
        linearpatch.load(adapter)
    with pytest.raises(StorageError, match="is an adapter"):
        linearpatch.load_tokenizer(adapter)
    save_checkpoint(tmp_path / "M", LoadedModel(decoder, byte_tokenizer(), "x"), edit_of([1, 2]))
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
    save_checkpoint(tmp_path / "M", model, edit_of([1], [(on_stream(1, 2, 2), LinearMap(torch.eye(32)))]))
    tokenizer = linearpatch.load_tokenizer(tmp_path / "M")
    text = "Ünïcode and spaces  "
    assert tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]


@pytest.fixture
def plain(tmp_path, decoder):
    save_checkpoint(tmp_path / "P", LoadedModel(decoder, byte_tokenizer(), "x"), edit_of([1, 2]), name="tiny")
    return tmp_path / "P"


def test_a_changed_file_of_equal_size_and_time_is_found(folder, use):
    use(folder)  # whatever is remembered of its files is remembered now
    weights = weights_of(folder)
    before = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(bytes(content))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StorageError, match="is damaged"):
        use(folder)


@pytest.mark.parametrize("how", ["in place", "in its place"])
def test_a_hash_is_not_remembered_beyond_a_change(tmp_path, how):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first, before = file_hash(file, tmp_path / "cache"), file.stat()
    assert file_hash(file, tmp_path / "cache") == first
    changed = file if how == "in place" else tmp_path / "b"
    changed.write_bytes(b"two")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed.replace(file)
    assert file_hash(file, tmp_path / "cache") == hashlib.sha256(b"two").hexdigest()


def test_loading_needs_no_cache_that_can_be_written(folder, use, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "file" / "cache"))
    use(folder)
    tiny_model().save_pretrained(tmp_path / "dense")
    assert len(fingerprint_folder(tmp_path / "dense", tmp_path / "file" / "cache")) == 16


def test_a_manifest_that_lists_nothing_is_rejected(folder, use):
    edit_manifest(folder, signed=True, files={})
    with pytest.raises(StorageError, match=f"doesn't list .*{weights_of(folder).name}"):
        use(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_that_loading_reads_is_listed(plain, name):
    files = json.loads((plain / "pruning.json").read_text())["files"]
    edit_manifest(plain, signed=True, files={key: value for key, value in files.items() if key != name})
    for use in (linearpatch.load, linearpatch.load_tokenizer):
        with pytest.raises(StorageError, match=f"doesn't list {name}"):
            use(plain)


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json", "extra.safetensors", "tokenization_x.py", "chat_template.jinja", "vocab.txt",
        "additional_chat_templates/x.jinja", "tokenizer.model", "pytorch_model.bin",
    ],
)  # fmt: skip
def test_a_file_that_loading_would_read_and_nobody_listed_is_rejected(plain, name):
    (plain / name).parent.mkdir(exist_ok=True)
    (plain / name).write_text("{}")
    with pytest.raises(StorageError, match=f"doesn't list {name}"):
        linearpatch.load(plain)


def test_files_that_loading_never_reads_may_be_added(plain):
    for name in ("LICENSE", "notes.md", ".gitattributes", ".cache/huggingface/download/config.json.metadata.json"):
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_text("mine")
    assert linearpatch.load(plain).config.num_hidden_layers == 4


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/hostname", "a/../../x"])
def test_a_manifest_names_no_files_outside_its_folder(plain, name):
    files = json.loads((plain / "pruning.json").read_text())["files"]
    edit_manifest(plain, signed=True, files=files | {name: "0" * 64})
    with pytest.raises(StorageError, match="outside its folder"):
        linearpatch.load(plain)


@pytest.mark.parametrize("shards", ["../stolen.safetensors", "lost.safetensors", ["x"], 7])
def test_an_index_names_listed_files_only(plain, shards):
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shards}}))
    resign(plain)
    with pytest.raises(StorageError, match=r"doesn't list|can't be read"):
        linearpatch.load(plain)


@pytest.mark.parametrize("layers", [[1, 1], [6], [-1], [99, 2]])
def test_removed_layers_that_cannot_be_are_rejected(folder, use, layers):
    edit_manifest(folder, signed=True, removed_layers=layers)
    with pytest.raises(StorageError, match="removed_layers"):
        use(folder)


def test_a_custom_checkpoint_loads_without_a_warning(folder, save_format, caplog, monkeypatch):
    if save_format == "adapter":
        pytest.skip("it has no configuration")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    linearpatch.load(folder)
    linearpatch.load_tokenizer(folder)
    assert not caplog.messages
