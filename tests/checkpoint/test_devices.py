"""Models that accelerate spread or offloaded: pruned, patched, folded and saved as if on one device."""

import pytest
import torch
import transformers
from conftest import NUM_LAYERS
from edits import edit_of, on_mlp, on_stream, view_of
from offloading import dense, on_disk
from packaging.version import Version
from transformers import AutoModelForCausalLM

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.saving import EXPERTS_FROM_DISK, save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.units import interfaces_of
from linearpatch.patches.rotate import Rotate

accelerate = pytest.importorskip("accelerate")
TOKENS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(3))
BLOCKS = TokenBlocks(torch.randint(3, 300, (6, 16), generator=torch.Generator().manual_seed(1)), "random/test")
REMOVED = [1, 2, 5]
SITES = [on_stream(1, 3, 3), on_stream(5, 6, 6)]
MATRIX = torch.eye(32) + 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
PATCHES = {
    "map": [(site, LinearMap(MATRIX)) for site in SITES],
    "scalar": [(site, ChannelScale(torch.tensor([1.3]))) for site in SITES],
    "mlp": [(on_mlp(1, 3), LinearMap(MATRIX)), (on_mlp(5, 6), LinearMap(MATRIX))],
    "none": [],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=[] if family == "llama" or kind == "map" else pytest.mark.slow)
        for family in ("llama", "gemma3_text", "opt", "qwen3_moe")
        for kind in PATCHES
    ],
)
def test_a_model_on_disk_is_pruned_patched_and_saved_like_one_in_memory(family, kind, tmp_path):
    if (family, kind) == ("gemma3_text", "mlp"):
        pytest.skip("its norm after the MLP takes no map")
    whole, patches = decoder_of(dense(family, tmp_path)), PATCHES[kind]
    expected = logits_of(view_of(whole, REMOVED, patches))
    offloaded = decoder_of(on_disk(family, tmp_path))
    assert any(parameter.is_meta for parameter in offloaded.model.parameters())
    assert weights_hash(offloaded.model) == weights_hash(whole.model)
    assert torch.equal(logits_of(view_of(offloaded, REMOVED, patches)), expected)

    if family == "qwen3_moe" and kind != "map" and Version(transformers.__version__) < EXPERTS_FROM_DISK:
        with pytest.raises(ModelError, match=r"Use transformers 5\.14 or newer"):
            save_checkpoint(tmp_path / "M", LoadedModel(offloaded, byte_tokenizer(), "x"), edit_of(REMOVED, patches))
        return
    for name, decoder in {"whole": whole, "offloaded": offloaded}.items():
        save_checkpoint(tmp_path / name, LoadedModel(decoder, byte_tokenizer(), "x"), edit_of(REMOVED, patches))
    found = logits_of(linearpatch.load(tmp_path / "offloaded"))
    assert torch.equal(found, logits_of(linearpatch.load(tmp_path / "whole")))
    if kind in ("map", "none"):
        assert torch.equal(found, expected)
    else:
        assert (found - expected).abs().max() / expected.abs().max() < 1e-4
    assert torch.equal(logits_of(offloaded.model), logits_of(whole.model))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_saved_model_is_offloaded_when_it_is_loaded(family, tmp_path):
    whole = decoder_of(dense(family, tmp_path))
    expected = logits_of(view_of(whole, REMOVED, PATCHES["map"]))
    save_checkpoint(tmp_path / "M", LoadedModel(whole, byte_tokenizer(), "x"), edit_of(REMOVED, PATCHES["map"]))
    size = sum(p.numel() * 4 for p in whole.model.parameters())
    settings = {"device_map": "auto", "max_memory": {"cpu": size // 3}, "offload_folder": tmp_path / "offload"}
    for found in (
        linearpatch.load(tmp_path / "M", **settings),
        AutoModelForCausalLM.from_pretrained(tmp_path / "M", trust_remote_code=True, **settings),
    ):
        assert "disk" in found.hf_device_map.values()
        assert torch.equal(logits_of(found), expected)


def test_fitting_on_a_model_on_disk_gives_the_same_patch(tmp_path):
    fits = []
    for model in (dense("llama", tmp_path), on_disk("llama", tmp_path, layers_on_disk=(1, 3, 4))):
        patch = Rotate()
        workspace = Workspace(decoder_of(model), BLOCKS, batch_size=2)
        fits.append(patch.fit(workspace, patch.place(interfaces_of(REMOVED)))[0].module.weight)
    assert torch.equal(*fits)


def test_a_view_knows_where_its_modules_are(tmp_path):
    dense("llama", tmp_path)
    view = view_of(decoder_of(on_disk("llama", tmp_path, layers_on_disk=(3,))), REMOVED)
    places = {name: place for name, place in view.hf_device_map.items() if "layers" in name}
    assert places == {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}


@pytest.mark.gpu
def test_a_model_on_gpu_and_cpu_gives_the_same_tokens(tmp_path):
    whole = decoder_of(dense("llama", tmp_path).cuda())
    tokens = TOKENS.cuda()
    expected = view_of(whole, REMOVED, PATCHES["map"])(tokens, use_cache=False).logits
    device_map = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": 0}
    device_map |= {f"model.layers.{i}": 0 if i < 3 else "cpu" for i in range(NUM_LAYERS)}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", device_map=device_map)
    found = view_of(decoder_of(spread), REMOVED, PATCHES["map"])(tokens, use_cache=False).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
