"""What is written, and that a failure leaves what was there."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, on_stream, view_of
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import linearpatch
from linearpatch.checkpoint.checks import check_format
from linearpatch.checkpoint.folding import folded_view
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.errors import ConfigError, ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.none import NoPatch
from linearpatch.patches.rotate import Rotate
from linearpatch.patches.scalar import Scalar
from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.results.sections import ModelSection, PatchSection, PruningSection
from linearpatch.storage.temporary import this_machine

SITE = on_stream(1, 3, 3)
MATRIX = torch.eye(32) + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(decoder) -> LoadedModel:
    return LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")


def save(folder, model, patch, **settings):
    patches = [] if patch is None else [(SITE, patch)]
    return save_checkpoint(folder, model, edit_of([1, 2], patches), **settings)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_custom_checkpoint_holds_all_it_needs(tmp_path, model):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    assert names(tmp_path / "M") == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_linearpatch.py",
        "pruning.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "M" / "config.json").read_text())
    assert config["model_type"] == "linearpatch_llama"
    assert config["num_hidden_layers"] == 4
    assert config["linear_patches"] == [
        {"module": "model.layers.1", "side": "input", "operator": "linear_map", "size": 32, "bias": False}
    ]


def test_an_adapter_is_two_small_files_and_a_card(tmp_path, model):
    save(tmp_path / "M", model, LinearMap(MATRIX), save_format="adapter", name="tiny", hub_id="someone/tiny")
    assert names(tmp_path / "M") == {"pruning.json", "patch.safetensors", "README.md"}
    card = ModelCard.load(tmp_path / "M" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("someone/tiny", "linearpatch")
    assert 'AutoModelForCausalLM.from_pretrained("someone/tiny")' in card.content
    assert "**Patched** with `linear_map` at each interface." in card.content
    assert torch.equal(load_file(tmp_path / "M" / "patch.safetensors")["0.weight"], MATRIX.T)


def test_without_remote_code_a_custom_checkpoint_never_loads_unpatched(tmp_path, model):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "M", trust_remote_code=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(tmp_path / "M", trust_remote_code=False)


def test_half_precision_comes_back_as_it_was(tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    dense, base = (AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16) for _ in range(2))
    model = LoadedModel(decoder_of(dense), byte_tokenizer(), "0123456789abcdef")
    tokens = torch.arange(3, 12)[None]
    expected = view_of(model.decoder, [1, 2], [(SITE, LinearMap(MATRIX))])(tokens, use_cache=False).logits
    for save_format in ("custom", "adapter"):
        save(tmp_path / save_format, model, LinearMap(MATRIX), save_format=save_format)
    found = linearpatch.load(tmp_path / "custom", dtype="auto")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    assert torch.equal(found(tokens, use_cache=False).logits, expected)
    adapted = linearpatch.apply(base, tmp_path / "adapter")
    assert torch.equal(adapted(tokens, use_cache=False).logits, expected)


def test_a_patched_view_saves_itself(tmp_path, decoder):
    view = view_of(decoder, [1, 2], [(SITE, LinearMap(MATRIX))])
    view.save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    tokens = torch.arange(3, 12)[None]
    assert torch.equal(found(tokens).logits, view(tokens).logits)
    found.save_pretrained(tmp_path / "again")  # what someone else does with it
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(tokens).logits, view(tokens).logits)


def test_a_patched_view_is_pushed_with_its_code_or_not_at_all(tmp_path, decoder):
    view = view_of(decoder, [1, 2], [(SITE, LinearMap(MATRIX))])
    with pytest.raises(StorageError, match="hf upload"):
        view.save_pretrained(tmp_path / "V", push_to_hub=True)
    assert not (tmp_path / "V").exists()


def test_auto_is_plain_where_patches_fold(tmp_path, model):
    assert save(tmp_path / "a", model, None).format == "plain"
    assert save(tmp_path / "a", model, None, save_format="custom").format == "plain"  # nothing to bring code for
    assert save(tmp_path / "b", model, ChannelScale(torch.tensor([1.5]))).format == "plain"
    assert save(tmp_path / "c", model, ChannelScale(torch.full((32,), 1.5))).format == "custom"
    assert save(tmp_path / "d", model, LinearMap(MATRIX)).format == "custom"


def test_auto_falls_back_where_a_family_cannot_fold(tmp_path, model, monkeypatch):
    monkeypatch.setattr("linearpatch.models.sublayers._decompose", lambda *of_layer: (None, 1.0))
    assert save(tmp_path / "M", model, ChannelScale(torch.tensor([1.5]))).format == "custom"
    with pytest.raises(ModelError, match="adds to the stream in a way this version doesn't support"):
        save(tmp_path / "N", model, ChannelScale(torch.tensor([1.5])), save_format="plain")
    assert not (tmp_path / "N").exists()


def test_a_fold_that_changes_the_logits_is_rejected(decoder, monkeypatch):
    monkeypatch.setattr("linearpatch.models.places._divide", lambda *_: None)
    with pytest.raises(ModelError, match="changes its logits by"):
        folded_view(decoder, edit_of([1, 2], [(SITE, ChannelScale(torch.tensor([1.5])))]))


def test_a_scale_that_turns_the_stream_around_is_not_folded(decoder):
    with pytest.raises(ModelError, match="not its sign"):
        folded_view(decoder, edit_of([1, 2], [(SITE, ChannelScale(torch.tensor([-1.5])))]))


def test_scales_at_the_end_and_in_a_row_fold(decoder):
    patches = [
        (on_stream(1, 2, 3), ChannelScale(torch.tensor([1.5]))),
        (on_stream(2, 3, 3), ChannelScale(torch.tensor([0.8]))),
    ]
    patches.append((on_stream(5, 6, 6), ChannelScale(torch.tensor([3.0]))))
    assert edit_of([], patches).can_fold
    decoder.model.get_input_embeddings().weight.data.mul_(10)
    tokens = torch.arange(3, 12)[None]
    expected = view_of(decoder, [1, 2, 5], patches)(tokens).logits
    found = folded_view(decoder, edit_of([1, 2, 5], patches))(tokens).logits
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


def test_plain_rejects_what_does_not_fold_and_names_what_remains():
    with pytest.raises(ConfigError, match=r"Remaining formats: custom .*, adapter"):
        check_format("plain", Rotate())
    for patch in (NoPatch(), Scalar(), MlpLeastSquares()):
        check_format("plain", patch)
    with pytest.raises(ConfigError, match="save_format is 'onnx'"):
        check_format("onnx", Rotate())


def test_an_operator_of_someone_else_runs_but_is_not_saved(tmp_path, model):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.ones(32))

        def forward(self, hidden):
            return hidden * self.gate.tanh()

    view = view_of(model.decoder, [1, 2], [(SITE, Gated())])
    view(torch.arange(3, 9)[None])
    with pytest.raises(StorageError, match="can't hold the operator Gated"):
        view.save_pretrained(tmp_path / "V")
    with pytest.raises(StorageError, match="can't hold the operator Gated"):
        save(tmp_path / "M", model, Gated())
    assert not (tmp_path / "M").exists()


@pytest.mark.parametrize("step", ["save_pretrained", "write_text", "replace"])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, model, monkeypatch, step):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    before = {path.name: path.read_bytes() for path in (tmp_path / "M").iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "save_pretrained":
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    else:
        monkeypatch.setattr(Path, step, full)
    with pytest.raises(StorageError, match="No space left on device"):
        save(tmp_path / "M", model, LinearMap(2 * MATRIX))
    assert {path.name: path.read_bytes() for path in (tmp_path / "M").iterdir()} == before
    assert names(tmp_path) <= {"M"}


def test_a_failure_of_the_last_rename_brings_the_previous_checkpoint_back(tmp_path, model, monkeypatch):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    before = (tmp_path / "M" / "pruning.json").read_text()
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if target == tmp_path / "M" and not self.name.endswith(".previous"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(StorageError, match="Input/output error"):
        save(tmp_path / "M", model, LinearMap(2 * MATRIX))
    assert (tmp_path / "M" / "pruning.json").read_text() == before
    assert names(tmp_path) == {"M"}


def test_a_crash_between_two_renames_is_repaired(tmp_path, model):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    (tmp_path / "M").rename(tmp_path / ".M.previous")
    save(tmp_path / "M", model, LinearMap(2 * MATRIX))
    assert names(tmp_path) == {"M"}


def test_a_folder_of_someone_else_is_left_alone(tmp_path, model):
    (tmp_path / "M").mkdir()
    save(tmp_path / "M", model, LinearMap(MATRIX))  # an empty one will do
    (tmp_path / "N").mkdir()
    (tmp_path / "N" / "notes.txt").write_text("precious")
    (tmp_path / "O").write_text("precious")
    for name in ("N", "O"):
        with pytest.raises(StorageError, match="isn't a checkpoint of this package"):
            save(tmp_path / name, model, LinearMap(MATRIX))
    assert (tmp_path / "N" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["notes.txt", ".git/HEAD", "lora/mine.bin"])
def test_files_beside_a_checkpoint_are_left_alone(tmp_path, model, name):
    save(tmp_path / "M", model, LinearMap(MATRIX))
    (tmp_path / "M" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "M" / name).write_text("precious")
    with pytest.raises(StorageError, match=rf"holds files that this package didn't write: {name}\. .*Move these files"):
        save(tmp_path / "M", model, LinearMap(2 * MATRIX))
    assert (tmp_path / "M" / name).read_text() == "precious"


def test_a_checkpoint_of_another_format_is_replaced_with_a_warning(tmp_path, model, caplog):
    save(tmp_path / "M", model, None, save_format="plain")
    assert "is replaced" not in caplog.text
    save(tmp_path / "M", model, None, save_format="adapter")
    assert "the plain checkpoint is replaced, its format is adapter now" in caplog.text


def test_a_type_of_numbers_is_for_gguf_files(tmp_path, model):
    with pytest.raises(ConfigError, match=r"gguf_type is q8_0, and save_format is plain.*leave gguf_type out"):
        save(tmp_path / "M", model, None, save_format="plain", gguf_type="q8_0")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, model):
    dead, alive = (tmp_path / f".M~{this_machine()}~{process}~{'0' * 8}.tmp" for process in (2**22 + 1, os.getppid()))
    dead.mkdir()
    alive.mkdir()
    save(tmp_path / "M", model, LinearMap(MATRIX))
    assert not dead.exists()
    assert alive.exists()


def test_a_link_keeps_pointing_where_it_did(tmp_path, model):
    save(tmp_path / "target", model, LinearMap(MATRIX))
    (tmp_path / "M").symlink_to(tmp_path / "target")
    save(tmp_path / "M", model, LinearMap(2 * MATRIX))
    assert (tmp_path / "M").is_symlink()
    assert names(tmp_path) == {"M", "target"}


def test_the_card_tells_what_was_done(tmp_path, model):
    record = Record("run-1", None, "linearpatch run patch=rotate", 0, {"patch": {"sites": "one_per_interface"}})
    record.model = ModelSection("tiny", "f", 4, 1000, "float32", "a note")
    record.pruning = PruningSection("streamline", [1, 2], [(1, 3)], 250, 0.25)
    record.patch = PatchSection("rotate", 10)
    metric = Metric(12.345, 0.5, 1234, "windows of 8", "h")
    broken = replace(metric, value=None, reason="the value is inf")
    record.metrics = {"dense": {"ppl/x": metric}, "patched": {"ppl/x": broken}}
    save(tmp_path / "M", model, LinearMap(MATRIX), record=record, name="tiny", hub_id="someone/tiny", license="mit")
    card = ModelCard.load(tmp_path / "M" / "README.md")
    assert card.data.base_model == "someone/tiny"
    assert card.data.license == "mit"
    for text in (
        "layers 1-2 of the dense model, counted from 0, chosen by `streamline` (25.0% of all parameters)",
        "**Patched** with `rotate` at each interface: x ↦ x P with P = H diag(d) Hᵀ",
        "|  | dense | patched |",
        "| ppl/x | 12.35 ± 0.50 | not finite |",
        "ppl/x: windows of 8, 1,234 tokens",
        "linearpatch run patch=rotate",
        "sites: one_per_interface",
        "a note",
        "trust_remote_code=True",
    ):
        assert text in card.content
