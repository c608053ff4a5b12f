"""New weights before an interface: the solution against rows of streams, and the model that it makes."""

from math import inf

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from edits import edit_of, repaired, view_of
from small_runs import result, run
from tiny import model_of

import linearpatch
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.passes import projection_inputs, record
from linearpatch.models.random import byte_tokenizer
from linearpatch.models.units import Unit, interfaces_of
from linearpatch.patches.before_interface import SMALLEST, STREAM_SHARE, before_the_map
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.patches.penalty import Penalty
from linearpatch.patches.refit import Refit
from linearpatch.pruners.patch_aware import PatchAware

REMOVED = [2, 3]
FAMILIES = ["llama", "qwen3", "opt", "gpt_neox", "granite", "phi3"]


@pytest.fixture
def model(decoder):
    return LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")


def random_blocks(count, seed):
    return TokenBlocks(torch.randint(3, 300, (count, 12), generator=torch.Generator().manual_seed(seed)), "random")


MLP_1 = Unit(1, "mlp")


def workspace_of(family="llama", patch=None):
    decoder = decoder_of(tiny_model(family))
    return Workspace(decoder, random_blocks(40, 8), held_out=random_blocks(4, 9), batch_size=4, patch=patch)


def streams_of(workspace):
    """The stream before and after the interface, and what the MLP's last product read, `[tokens, …]` in fp64."""
    with projection_inputs(workspace.decoder, [MLP_1]) as read:
        streams = record(workspace.decoder, workspace.blocks.ids).streams
    return [values.flatten(0, -2).double() for values in (streams[2], streams[4], read[MLP_1])]


def ridged(design, target, penalty, prior):
    """Least squares with rows for the ridge."""
    rows, wanted = penalty.sqrt().diag(), penalty.sqrt()[:, None] * prior
    return torch.linalg.lstsq(torch.cat([design, rows]), torch.cat([target, wanted]), driver="gelsd").solution


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_refit_solves_for_the_map_and_the_weight(family, relative):
    workspace = workspace_of(family)
    x, y, h = streams_of(workspace)
    weight = 1 / y.norm(dim=1, keepdim=True) if relative else torch.ones(len(y), 1).double()
    ridge = 0.1
    fitted = repaired(Refit(ridge=ridge, gain=1, weighting="relative" if relative else "none"), workspace, REMOVED)
    assert [one.place.kind for one in fitted] == ["mlp_projection", "stream"]

    design = torch.cat([x, h, torch.ones(len(x), 1).double()], dim=1)
    energy = (design * weight).square().sum(dim=0)
    energy = torch.cat([ridge * STREAM_SHARE * energy[:32], ridge * energy[32:-1], torch.zeros(1).double()])
    prior = torch.eye(len(energy), 32).double()
    joint = ridged(design * weight, y * weight, energy, prior)
    moved = before_the_map(joint[32:-1], joint[:32])
    assert torch.allclose(fitted[0].module.weight.T.double(), moved, rtol=1e-3, atol=1e-4)

    stream = x + h @ moved
    design = torch.cat([stream, torch.ones(len(x), 1).double()], dim=1)
    energy = ridge * STREAM_SHARE * (design * weight).square().sum(dim=0)
    energy[-1] = 0
    solution = ridged(design * weight, y * weight, energy, torch.eye(33, 32).double())
    assert torch.allclose(fitted[1].module(stream.float()).double(), design @ solution, rtol=1e-3, atol=1e-3)
    error = ((design @ solution - y) * weight).square().sum() / (y * weight).square().sum()
    assert fitted[1].diagnostics["error_after"] == pytest.approx(error.item(), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patched_model_computes_what_was_fitted(family):
    workspace = workspace_of(family)
    x, _, h = streams_of(workspace)
    weight, stream = repaired(Refit(), workspace, REMOVED)
    view = decoder_of(view_of(workspace.decoder, REMOVED, [weight, stream]))
    found = record(view, workspace.blocks.ids).streams[2].flatten(0, 1)
    expected = stream.module((x + h @ weight.module.weight.T.double()).float())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_a_map_that_is_well_conditioned_loses_nothing_of_the_weight():
    behind, matrix = torch.randn(20, 8).double(), torch.eye(8).double() + 0.1 * torch.randn(8, 8).double()
    assert torch.allclose(before_the_map(behind, matrix) @ matrix, behind, rtol=0.05, atol=0.02)
    matrix[:, 0] = 0  # nothing before the map can reach this channel
    assert before_the_map(behind, matrix).abs().max() < 10 * behind.abs().max()


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-6, 0.0])
def test_a_weight_before_a_map_is_the_one_by_singular_values(smallest):
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(8, 8, generator=generator).double()).Q for _ in range(2))
    scales = torch.linspace(2, smallest, 8).double()
    behind = torch.randn(5, 8, generator=generator).double()
    expected = (behind @ right.T * scales / (scales.square() + SMALLEST**2)) @ left.T
    assert torch.allclose(before_the_map(behind, left * scales @ right), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_mlp_refit_regresses_what_the_gap_adds(family):
    workspace = workspace_of(family)
    x, y, h = streams_of(workspace)
    (fitted,) = repaired(MlpRefit(ridge=0.1), workspace, REMOVED)
    expected = ridged(h, y - x, 0.1 * h.square().sum(dim=0), torch.zeros(h.shape[1], 32).double())
    assert torch.allclose(fitted.module.weight.T.double(), expected, rtol=1e-3, atol=1e-4)
    error = (x + h @ expected - y).square().sum() / y.square().sum()
    assert fitted.diagnostics["error_after"] == pytest.approx(error.item(), rel=1e-3)
    assert fitted.diagnostics["error_after"] < fitted.diagnostics["error_before"]


def test_refit_explains_more_than_the_stream_alone():
    workspace = workspace_of()
    alone = repaired(LeastSquares(bias=True), workspace, REMOVED)[0].diagnostics["error_after"]
    assert repaired(Refit(ridge=1e-4, gain=1), workspace, REMOVED)[1].diagnostics["error_after"] < 0.8 * alone


@pytest.mark.parametrize("patch", [Refit(), MlpRefit(), Refit(ridge="auto", sequential=True)], ids=repr)
@pytest.mark.slow
def test_a_search_measures_the_models_that_it_would_make(patch):
    draft = patch.draft()
    workspace = workspace_of(patch=draft)
    selection = PatchAware(protect_first=1, stop_early=False).select(workspace, 2)
    ids = workspace.held_out.ids
    for start, found in enumerate(selection.scores.values):
        if start > 0:
            removed = [start, start + 1]
            patches = repaired(draft, workspace, removed)
            with torch.no_grad():
                logits = view_of(workspace.decoder, removed, patches)(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
            assert found == pytest.approx(loss.item(), rel=1e-5)
    assert repaired(patch, workspace, [1, 3])


def test_dead_units_and_a_ridge_that_allows_nothing():
    workspace = workspace_of("opt")
    with torch.no_grad():  # relu: never active
        workspace.decoder.layers[1].fc1.bias[:4] = -1e6
    weight, _ = repaired(Refit(ridge=0.1), workspace, REMOVED)
    assert weight.module.weight.isfinite().all()
    (gram,) = workspace.collect(*Refit().interface_statistics(Refit().place(interfaces_of(REMOVED))))
    (weight, stream), _ = Refit().operators(gram, Penalty(inf, inf))  # as `auto` tries, too
    values = torch.randn(3, 32)
    assert not weight.weight.any()
    assert torch.equal(stream(values), values)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_where_nothing_can_be_refitted_the_map_alone_is_fitted(family):
    decoder = decoder_of(tiny_model(family))
    patch = Refit(ridge="auto", gain="matched", fall_back=True)
    alone = patch.for_model(decoder)
    assert alone == LeastSquares(bias=True, ridge="auto", gain="matched", weighting="capped")
    with pytest.raises(ModelError):
        Refit().for_model(decoder).check(decoder)
    llama = decoder_of(tiny_model())
    assert patch.for_model(llama) is patch


@pytest.mark.parametrize("settings", [{"family": "gemma2"}, {"family": "llama"}], ids=lambda one: one["family"])
@pytest.mark.slow
def test_a_run_falls_back_and_says_what_it_fitted(tmp_path, settings, said):
    over = [f"model.{name}={value}" for name, value in settings.items()] + ["model.attn_implementation=eager"]
    words = ("patch=refit", "patch.fall_back=true", "pruner.protect_first=1")
    assert run(*words, *over, f"output_dir={tmp_path}/D") == 0
    method = "refit" if settings["family"] == "llama" else "lstsq"
    assert result(tmp_path / "D")["patch"]["method"] == method
    assert ("patch=lstsq in place of refit" in said()) == (method == "lstsq")


@pytest.mark.parametrize("save_format", ["custom", "adapter"])
def test_a_refit_model_is_saved_and_loaded(tmp_path, model, save_format):
    workspace = Workspace(model.decoder, random_blocks(40, 8), batch_size=4)
    patches = repaired(Refit(), workspace, REMOVED)
    save_checkpoint(tmp_path / "m", model, edit_of(REMOVED, patches), save_format=save_format)
    if save_format == "adapter":
        loaded = linearpatch.apply(model.decoder.model, tmp_path / "m")
    else:
        loaded = linearpatch.load(tmp_path / "m")
    same_logits(loaded, view_of(model.decoder, REMOVED, patches))


def test_mlp_refit_makes_a_stock_checkpoint(tmp_path, model):
    from transformers import AutoModelForCausalLM

    workspace = Workspace(model.decoder, random_blocks(40, 8), batch_size=4)
    patches = repaired(MlpRefit(), workspace, REMOVED)
    manifest = save_checkpoint(tmp_path / "m", model, edit_of(REMOVED, patches), save_format="plain")
    assert manifest.format == "plain"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(loaded) is type(model.decoder.model)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.decoder.model.parameters())
    same_logits(loaded, view_of(model.decoder, REMOVED, patches))


def same_logits(one, other):
    ids = random_blocks(2, 5).ids
    with torch.no_grad():
        found, expected = (m(input_ids=ids, use_cache=False).logits for m in (one, other))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("patch", [Refit(), MlpRefit()], ids=repr)
def test_what_cannot_be_refitted_is_rejected(patch):
    with pytest.raises(ConfigError, match="protect_first=1"):
        repaired(patch, workspace_of(), [0])
    with pytest.raises(ModelError, match="keeps its experts' weights"):
        patch.check(decoder_of(model_of("dbrx")))
    with pytest.raises(ModelError, match="normalises"):
        patch.check(decoder_of(tiny_model("gemma3_text")))
    patch.check(decoder_of(tiny_model("llama", num_hidden_layers=NUM_LAYERS)))
