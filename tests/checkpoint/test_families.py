"""Every family from statistics to a reloaded checkpoint; four of them with every pruner and every patch."""

import pytest
import torch
from conftest import FAMILIES, NUM_LAYERS, tiny_model
from edits import edit_of, view_of
from transformers import AutoModelForCausalLM

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import ChannelScale
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.units import interfaces_of
from linearpatch.registry import components

POST_NORM = ("gemma2", "gemma3_text")
AT_MLP = ("mlp_lstsq", "refit", "mlp_refit")
IN_FULL = ("llama", "qwen3", "gemma3_text", "opt")
TOKENS = torch.randint(3, 259, (2, 14), generator=torch.Generator().manual_seed(3))
BLOCKS = TokenBlocks(torch.randint(3, 300, (6, 16), generator=torch.Generator().manual_seed(1)), "random/test")
SETTINGS = {
    "evolution": {"generations": 1, "offspring": 2, "initial": 1},
    "explicit": {"layers": [2, 4]},
    "taylor": {"protect_first": 1, "protect_last": 1},
    "magnitude": {"protect_first": 1, "protect_last": 1},
}
PATCHES = {
    "scalar": {},
    "diag": {},
    "rotate": {},
    "lstsq": {"bias": True, "ridge": 0.01},
    "mlp_lstsq": {"ridge": 0.01},
    "refit": {"ridge": 0.1},
    "mlp_refit": {"ridge": 0.1},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def loaded(family: str, tmp_path) -> LoadedModel:
    """A model as users have it: from a checkpoint, not fresh from its class."""
    tiny_model(family).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    return LoadedModel(decoder_of(model), byte_tokenizer(), "0123456789abcdef")


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def fitted(model, removed, patch, settings):
    patch = components("patch")[patch](**settings)
    patch.check(model.decoder)
    found = patch.fit(Workspace(model.decoder, BLOCKS, batch_size=2), patch.place(interfaces_of(removed)))
    return [(one.site, one.module) for one in found]


@pytest.mark.parametrize("family", IN_FULL)
@pytest.mark.parametrize(
    "pruner",  # without the one that asks a task's questions, which a workspace of tokens hasn't
    [
        name
        for name, cls in components("pruner").items()
        if cls.removes_layers and "layer" in cls.units and name != "task"
    ],
)
def test_every_pruner_selects_layers(family, pruner):
    held_out = TokenBlocks(BLOCKS.ids.flip(0, 1), "random/held out")
    patch = components("patch")["rotate"]()
    workspace = Workspace(decoder_of(tiny_model(family)), BLOCKS, held_out=held_out, patch=patch, batch_size=2)
    removed = components("pruner")[pruner](**SETTINGS.get(pruner, {})).select(workspace, 2).removed_layers
    assert len(set(removed)) == 2
    assert set(removed) <= set(range(NUM_LAYERS))


@pytest.mark.parametrize("patch", AT_MLP)
@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_after_the_mlp_rejects_patches_of_the_mlp(family, patch, tmp_path):
    with pytest.raises(ModelError, match="normalises its MLP's output"):
        fitted(loaded(family, tmp_path), [1], patch, {})


IN_FULL_AND_SMOKE = [
    (family, patch)
    for family in FAMILIES
    for patch in (PATCHES if family in IN_FULL else ["rotate"])
    if not (patch in AT_MLP and family in POST_NORM)
]
# Families name their MLP differently: each meets a patch of it. `make test-slow` tries the others.
FOLDED = [
    pytest.param(family, patch, marks=[] if family in IN_FULL or patch == "mlp_lstsq" else pytest.mark.slow)
    for family in FAMILIES
    for patch in ("none", "scalar", "mlp_lstsq", "mlp_refit")
    if not (patch in AT_MLP and family in POST_NORM)
]


@pytest.mark.parametrize(("family", "patch"), IN_FULL_AND_SMOKE)
def test_saved_models_load_in_three_ways_with_the_same_logits(family, patch, tmp_path):
    model, removed = loaded(family, tmp_path), [4, 1, 5]
    dense_before = logits_of(model.decoder.model)
    patches = fitted(model, removed, patch, PATCHES[patch])
    expected = logits_of(view_of(model.decoder, removed, patches))

    manifest = save_checkpoint(tmp_path / "custom", model, edit_of(removed, patches), save_format="custom")
    assert manifest.format == ("plain" if patch == "mlp_refit" else "custom")  # new weights alone need no code
    save_checkpoint(tmp_path / "adapter", model, edit_of(removed, patches), save_format="adapter")
    remote, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "custom", trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    assert "linearpatch" not in [type(remote).__module__.split(".")[0]]
    in_package = linearpatch.load(tmp_path / "custom")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    adapted = linearpatch.apply(base, tmp_path / "adapter")
    for found in (remote, in_package, adapted):
        assert torch.equal(logits_of(found), expected)
    assert torch.equal(logits_of(model.decoder.model), dense_before)
    assert torch.equal(logits_of(base), dense_before)

    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(TOKENS)
    cached = remote.generate(TOKENS, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, remote.generate(TOKENS, attention_mask=mask, use_cache=False, **settings))
    assert torch.equal(cached, in_package.generate(TOKENS, attention_mask=mask, **settings))


@pytest.mark.parametrize(("family", "patch"), FOLDED)
def test_folded_checkpoints_are_stock_and_agree_with_their_patches(family, patch, tmp_path):
    model, removed = loaded(family, tmp_path), [1, 3, 4]
    # Trained streams are far above the norms' epsilon, which is all that folding a scale changes.
    model.decoder.model.get_input_embeddings().weight.data.mul_(10)
    patches = fitted(model, removed, patch, PATCHES.get(patch, {}))
    if patch == "scalar":  # as if the stream had grown much across the interfaces
        patches = [
            (site, ChannelScale(torch.tensor([scale]))) for (site, _), scale in zip(patches, (1.7, 0.6), strict=True)
        ]
    dense_before = logits_of(model.decoder.model)
    manifest = save_checkpoint(tmp_path / "folded", model, edit_of(removed, patches), save_format="plain")
    assert manifest.format == "plain"
    assert not list((tmp_path / "folded").glob("*.py"))

    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "folded", output_loading_info=True)
    assert not any(info.values())
    assert type(found) is type(model.decoder.model)
    stock = view_of(model.decoder, removed)
    assert {name: p.shape for name, p in found.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    expected = logits_of(view_of(model.decoder, removed, patches))
    error = (logits_of(found) - expected).abs().max() / expected.abs().max()
    assert error <= (0 if patch == "none" else 1e-4)
    assert torch.equal(logits_of(model.decoder.model), dense_before)
    if patch != "none":
        assert (logits_of(stock) - expected).abs().max() / expected.abs().max() > 1e-3  # the patch does something


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "bloom"])
def test_batched_left_padded_generation_gives_what_each_prompt_gives_alone(family, tmp_path):
    model = loaded(family, tmp_path)
    save_checkpoint(tmp_path / "model", model, edit_of([1, 3], fitted(model, [1, 3], "rotate", {})))
    found, tokenizer = linearpatch.load(tmp_path / "model"), linearpatch.load_tokenizer(tmp_path / "model")
    tokenizer.padding_side = "left"
    prompts = ["Once upon a time", "Hi"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = found.generate(**batch, **settings)[:, -6:]
    for row, prompt in zip(together, prompts, strict=True):
        alone = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert torch.equal(row, found.generate(**alone, **settings)[0, -6:])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "falcon"])
def test_beam_search_is_the_same_with_and_without_cache(family, tmp_path):
    model = loaded(family, tmp_path)
    save_checkpoint(tmp_path / "model", model, edit_of([1, 3], fitted(model, [1, 3], "rotate", {})))
    found = linearpatch.load(tmp_path / "model")
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(TOKENS)
    cached = found.generate(TOKENS, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, found.generate(TOKENS, attention_mask=mask, use_cache=False, **settings))
