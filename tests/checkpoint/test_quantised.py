"""Quantised models: layers go, operators are added and saved beside the codes, and what needs weights is rejected."""

import logging

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, repaired
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.checks import check_model
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.data.tokens import Tokens
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.hub import HubModel
from linearpatch.models.model import LoadedModel
from linearpatch.models.quantised import is_quantised, keep_order_of_codes, num_parameters, quantised_modules
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.block import Block
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp import Mlp
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.refit import Refit
from linearpatch.registry import name_of
from linearpatch.storage.cache import Cache

functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
QUANTISED = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}
REMOVED = [2, 4]
TOKENS = torch.randint(3, 259, (2, 14), generator=torch.Generator().manual_seed(3))


def random_blocks(count, seed):
    return TokenBlocks(torch.randint(3, 300, (count, 16), generator=torch.Generator().manual_seed(seed)), "random")


BLOCKS, HELD_OUT = random_blocks(12, 1), random_blocks(4, 2)


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


# bitsandbytes computes in 8 bits slowly on a CPU.
@pytest.fixture(scope="module", params=["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    """A quantised checkpoint, as the hub has them."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(**SIZES).save_pretrained(folder / "dense")
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", quantization_config=QUANTISED[request.param])
    model.save_pretrained(folder / "quantised")
    byte_tokenizer().save_pretrained(folder / "quantised")
    return folder / "quantised"


@pytest.fixture
def model(folder, tmp_path):
    return HubModel(path=str(folder)).load(tmp_path / "cache")


def logits_of(model):
    keep_order_of_codes(model)  # of models that transformers loaded
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def test_its_parameters_are_the_numbers_that_the_codes_stand_for(model):
    whole = tiny_model(**SIZES)
    assert model.decoder.num_parameters == sum(parameter.numel() for parameter in whole.parameters())
    layers = sum(p.numel() for index in REMOVED for p in whole.model.layers[index].parameters())
    assert edit_of(REMOVED).num_parameters_removed(model.decoder) == layers
    assert len(list(quantised_modules(model.decoder.model))) == 7 * model.decoder.num_layers
    assert not any(is_quantised(module) for module in whole.modules())
    assert num_parameters([whole.model.layers[0], whole.model.layers[0]]) == layers // 2


@pytest.mark.parametrize("save_format", ["custom", "adapter", "plain"])
def test_a_patch_beside_the_codes_is_fitted_saved_and_loaded(model, folder, save_format, tmp_path):
    before = logits_of(model.decoder.model)
    workspace = Workspace(model.decoder, BLOCKS, batch_size=4)
    patches = [] if save_format == "plain" else repaired(LeastSquares(bias=True, ridge=0.1), workspace, REMOVED)
    edit = edit_of(REMOVED, patches)
    manifest = save_checkpoint(tmp_path / "m", model, edit, save_format=save_format)
    assert manifest.format == save_format
    if save_format == "adapter":
        loaded = linearpatch.apply(AutoModelForCausalLM.from_pretrained(folder).eval(), tmp_path / "m")
    elif save_format == "custom":
        loaded = linearpatch.load(tmp_path / "m")
        remote = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)
        assert torch.equal(logits_of(remote), logits_of(loaded))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(logits_of(loaded), logits_of(edit.view(model.decoder)), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(model.decoder.model), before)
    assert len(list(quantised_modules(loaded))) == 7 * (model.decoder.num_layers - len(REMOVED))
    if save_format != "adapter":  # its codes as they are
        written, read = load_file(tmp_path / "m" / "model.safetensors"), load_file(folder / "model.safetensors")
        name = "model.layers.{}.mlp.down_proj.weight"
        assert written[name.format(2)].dtype in (torch.uint8, torch.int8)
        assert torch.equal(written[name.format(2)], read[name.format(3)])
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    assert loaded.generate(TOKENS, attention_mask=mask, **settings).shape == (2, 18)


@pytest.mark.skipif(
    not functional.has_avx512bf16(), reason="bitsandbytes rearranges codes only for processors with AVX512-BF16"
)
def test_codes_that_were_rearranged_for_the_processor_arent_saved(folder, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    if not hasattr(loaded.model.layers[0].mlp.down_proj, "support_avx512bf16_for_cpu"):
        pytest.skip("8-bit codes are never rearranged")
    with torch.no_grad():
        loaded(input_ids=TOKENS)
    model = LoadedModel(decoder_of(loaded), byte_tokenizer(), "model")
    with pytest.raises(ModelError, match=r"rearranged the codes of .*Load it again"):
        save_checkpoint(tmp_path / "m", model, edit_of(REMOVED), save_format="plain")
    save_checkpoint(tmp_path / "m", model, edit_of(REMOVED), save_format="adapter")


def test_views_share_the_codes(model):
    dense, view = model.decoder, edit_of(REMOVED).view(model.decoder)
    kept, theirs = dense.layers[5].mlp.down_proj, view.model.layers[3].mlp.down_proj
    assert theirs is not kept
    assert theirs.weight is kept.weight
    assert getattr(theirs, "state", None) is getattr(kept, "state", None)


@pytest.mark.parametrize("patch", [Refit(), MlpRefit(), MlpLeastSquares(), Block(), Mlp()], ids=name_of)
def test_patches_that_need_the_weights_are_rejected(model, patch):
    with pytest.raises(ModelError, match=r"quantised\. .*patch=lstsq.*before it is quantised"):
        patch.check(model.decoder)


def test_the_recommended_patch_falls_back_on_the_map(model):
    patch = Refit(ridge="auto", gain="matched", fall_back=True).for_model(model.decoder)
    assert isinstance(patch, LeastSquares)
    workspace = Workspace(model.decoder, BLOCKS, held_out=HELD_OUT, batch_size=4, patch=patch)
    assert len(repaired(patch, workspace, REMOVED)) == 2


def test_searches_and_distillation_run_on_the_codes(model):
    data = Tokens(BLOCKS, HELD_OUT, Cache())
    dense = model.decoder.model
    edit = linearpatch.prune(dense, data, 2, pruner="sleb", patch="none")
    edit = linearpatch.repair(dense, edit, data, patch="lstsq", ridge=0.1)
    trained = linearpatch.distill(dense, edit, data, learning_rate=1e-2, batch_size=4)
    assert len(trained.operators) == len(edit.operators)
    for trainable in ("lora", "neighbours"):
        with pytest.raises(ConfigError, match="is quantised"):
            linearpatch.distill(dense, edit, data, trainable=trainable)


@pytest.mark.parametrize("pruner", ["taylor", "magnitude"])
def test_pruners_of_weights_are_rejected(model, pruner):
    data, ends = Tokens(BLOCKS, HELD_OUT, Cache()), {"protect_first": 1, "protect_last": 1}
    with pytest.raises(ModelError, match="This pruner needs the values of weights"):
        linearpatch.prune(model.decoder.model, data, 1, pruner=pruner, patch="none", **ends)


@pytest.mark.parametrize("save_format", ["gguf", "nemotron_nas", "lora"])
def test_formats_of_whole_numbers_are_rejected(model, save_format):
    with pytest.raises(ModelError, match=f"save_format={save_format} needs the values of weights"):
        check_model(model, save_format, mixed_layers=False)


def test_a_repaired_checkpoint_is_quantised_as_the_guide_says(tmp_path):
    model = whole_model(tmp_path)
    patches = repaired(MlpRefit(ridge=0.1), Workspace(model.decoder, BLOCKS, batch_size=4), REMOVED)
    edit = edit_of(REMOVED, patches)
    save_checkpoint(tmp_path / "small", model, edit, save_format="plain")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", quantization_config=QUANTISED["4bit"])
    small.save_pretrained(tmp_path / "small-4bit")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small-4bit")
    assert torch.equal(logits_of(again), logits_of(small))
    expected = logits_of(edit.view(model.decoder))
    assert torch.nn.functional.cosine_similarity(logits_of(again).flatten(), expected.flatten(), dim=0) > 0.9


def whole_model(folder):
    """The model before it is quantised."""
    tiny_model(**SIZES).save_pretrained(folder / "dense")
    byte_tokenizer().save_pretrained(folder / "dense")
    return HubModel(path=str(folder / "dense")).load(folder / "cache")
