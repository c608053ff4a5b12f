"""Vision-language models: the text decoder is pruned inside its wrapper, which still reads images."""

import json
import logging

import pytest
import torch
from edits import edit_of, repaired
from tiny import model_of
from transformers import AutoModelForImageTextToText

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.checks import check_config
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ModelError
from linearpatch.models.auto import auto_class, is_vision_language
from linearpatch.models.decoder import decoder_of
from linearpatch.models.hub import HubModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.rebuilding import check_removal
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.refit import Refit

IMAGE = 5  # the token where features of an image go
QWEN = {"image_token_id": IMAGE, "vision_start_token_id": 6, "vision_end_token_id": 7, "video_token_id": 8}
WRAPPERS = {
    "gemma3": {"image_token_id": IMAGE, "mm_tokens_per_image": 4},
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "mistral3": {"image_token_id": IMAGE},
    "llama4": {"image_token_id": IMAGE},
}
NUM_IMAGE_TOKENS = {"llama4": 1}
PATCHES = {family: (Refit(ridge=0.1), MlpRefit(ridge=0.1)) for family in WRAPPERS}
PATCHES["gemma3"] = (LeastSquares(bias=True, ridge=0.1), None)  # a norm stands behind its MLPs
REMOVED = [4, 6]
BLOCKS = TokenBlocks(torch.randint(9, 259, (16, 16), generator=torch.Generator().manual_seed(1)), "random")
PROCESSOR = {"processor_class": "Gemma3Processor", "image_seq_length": 4}


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def saved_wrapper(family, folder):
    """A checkpoint as the hub has it."""
    model = model_of(family, **WRAPPERS[family])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # Gemma's projection of images begins with zeros
                parameter.data.normal_()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))


def image_inputs(family, config, seed=0):
    """A prompt with an image in it."""
    vision = config.vision_config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[9, 10, 6, *[IMAGE] * NUM_IMAGE_TOKENS.get(family, 4), 7, 20, 30, 40]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "qwen" in family:
        size = 3 * vision.temporal_patch_size * vision.patch_size**2
        inputs["pixel_values"] = torch.randn(16, size, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    else:
        inputs["pixel_values"] = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
    if family == "mistral3":
        inputs["image_sizes"] = torch.tensor([[vision.image_size] * 2])
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    return inputs


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "save_format"),
    [
        *((family, "custom") for family in WRAPPERS),
        ("qwen2_5_vl", "plain"),
        *(pytest.param(family, "plain", marks=pytest.mark.slow) for family in ("qwen3_vl", "mistral3", "llama4")),
        *(pytest.param(family, "adapter", marks=pytest.mark.slow) for family in ("qwen2_5_vl", "llama4")),
    ],
)
def test_a_repaired_wrapper_generates_from_text_and_from_an_image(family, save_format, tmp_path):
    saved_wrapper(family, tmp_path / "dense")
    model = HubModel(path=str(tmp_path / "dense")).load(tmp_path / "cache")
    wrapper = model.decoder.model
    assert type(wrapper).__name__.endswith("ForConditionalGeneration")
    patch = PATCHES[family][save_format == "plain"]
    patches = repaired(patch, Workspace(model.decoder, BLOCKS, batch_size=8), REMOVED)
    edit = edit_of(REMOVED, patches)
    view = edit.view(model.decoder)
    manifest = save_checkpoint(tmp_path / "m", model, edit, save_format=save_format)
    assert manifest.format == save_format
    if save_format == "adapter":
        loaded = linearpatch.apply(AutoModelForImageTextToText.from_pretrained(tmp_path / "dense"), tmp_path / "m")
    else:
        loaded = linearpatch.load(tmp_path / "m")
        assert json.loads((tmp_path / "m" / "processor_config.json").read_text()) == PROCESSOR
    if save_format == "custom":
        remote = AutoModelForImageTextToText.from_pretrained(tmp_path / "m", trust_remote_code=True)
        inputs = image_inputs(family, wrapper.config)
        assert torch.equal(logits_of(remote, inputs), logits_of(loaded, inputs))

    text = {"input_ids": BLOCKS.ids[:2], "attention_mask": torch.ones_like(BLOCKS.ids[:2])}
    for inputs in (text, image_inputs(family, wrapper.config)):
        expected = logits_of(view, inputs)
        assert torch.allclose(logits_of(loaded, inputs), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
        assert (logits_of(wrapper, inputs) - expected).abs().max() > 1e-2 * expected.abs().max()
        settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        cached, uncached = (loaded.generate(**inputs, use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, uncached)
    seen, other = (logits_of(loaded, image_inputs(family, wrapper.config, seed)) for seed in (0, 1))
    assert (seen - other).abs().max() > 1e-3 * seen.abs().max()  # the image reaches the logits
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in wrapper.parameters())


def test_a_wrapper_is_loaded_whole_and_a_text_decoder_alone_as_what_it_is(tmp_path):
    wrapper = model_of("llama4", **WRAPPERS["llama4"])
    assert is_vision_language(wrapper.config)
    assert auto_class(wrapper.config) is AutoModelForImageTextToText
    text = model_of("llama4_text")
    assert not is_vision_language(text.config)
    wrapper.config.architectures = ["Llama4ForCausalLM"]
    assert not is_vision_language(wrapper.config)
    assert not is_vision_language(model_of("gpt2").config)


def test_a_wrapper_without_a_processor_says_so(tmp_path, caplog):
    saved_wrapper("gemma3", tmp_path / "dense")
    (tmp_path / "dense" / "processor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        HubModel(path=str(tmp_path / "dense")).load(tmp_path / "cache")
    assert "has no processor (processor_config.json, preprocessor_config.json)" in caplog.text


def test_layers_that_images_reach_are_named(caplog):
    decoder = decoder_of(model_of("qwen3_vl", **WRAPPERS["qwen3_vl"]))
    count = len(decoder.model.config.vision_config.deepstack_visual_indexes)
    for removed in ([1, 6], [count]):
        with caplog.at_level(logging.WARNING):
            check_removal(decoder, edit_of(removed).view(decoder), removed)
    (warning,) = [record.getMessage() for record in caplog.records if "adds image features" in record.getMessage()]
    assert "Without layers 1 " in warning
    assert warning.endswith(f"pruner.protect_first={count}.")


@pytest.mark.parametrize("save_format", ["gguf", "nemotron_nas"])
def test_formats_of_text_decoders_are_rejected(save_format):
    config = model_of("mistral3", **WRAPPERS["mistral3"]).config
    with pytest.raises(ModelError, match=f"save_format={save_format} can't hold mistral3: .* images"):
        check_config(config, save_format, mixed_layers=False)


def test_the_python_api_finds_the_processor_beside_the_model(tmp_path):
    saved_wrapper("gemma3", tmp_path / "dense")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "dense")
    linearpatch.save(tmp_path / "m", model, byte_tokenizer(), edit_of([3]))
    assert json.loads((tmp_path / "m" / "processor_config.json").read_text()) == PROCESSOR
