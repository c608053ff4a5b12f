"""Mixtures of experts from layers to a checkpoint that generates."""

import pytest
import torch
from edits import edit_of, repaired, view_of
from tiny import model_of
from transformers import AutoModelForCausalLM

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.mlp_lstsq import MlpLeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.refit import Refit

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe"]
REMOVED = [3, 5]
BLOCKS = TokenBlocks(torch.randint(3, 300, (24, 16), generator=torch.Generator().manual_seed(1)), "random")
TOKENS = torch.randint(3, 259, (2, 14), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("family", "patch", "save_format"),
    [
        *((family, Refit(ridge=0.1), "custom") for family in FAMILIES),
        *((family, MlpRefit(ridge=0.1), "plain") for family in FAMILIES),
        *((family, MlpLeastSquares(ridge=0.1), "plain") for family in ("llama4_text", "gpt_oss")),
        *((family, Refit(ridge=0.1), "adapter") for family in ("deepseek_v3", "olmoe")),
    ],
)
def test_a_repaired_mixture_is_saved_and_generates(family, patch, save_format, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model_of(family).save_pretrained(tmp_path / "dense")
    model = LoadedModel(
        decoder_of(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")), byte_tokenizer(), "0123456789abcdef"
    )
    patch.check(model.decoder)
    patches = repaired(patch, Workspace(model.decoder, BLOCKS, batch_size=8), REMOVED)
    manifest = save_checkpoint(tmp_path / "m", model, edit_of(REMOVED, patches), save_format=save_format)
    assert manifest.format == save_format
    if save_format == "adapter":
        loaded = linearpatch.apply(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), tmp_path / "m")
    elif save_format == "custom":
        loaded = linearpatch.load(tmp_path / "m")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        assert type(loaded) is type(model.decoder.model)
    with torch.no_grad():
        found, expected, pruned = (
            one(input_ids=TOKENS, use_cache=False).logits
            for one in (loaded, view_of(model.decoder, REMOVED, patches), view_of(model.decoder, REMOVED))
        )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert (pruned - expected).abs().max() > 1e-3 * expected.abs().max()  # the patch does something
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    cached, uncached = (
        loaded.generate(TOKENS, attention_mask=mask, use_cache=use_cache, **settings) for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
