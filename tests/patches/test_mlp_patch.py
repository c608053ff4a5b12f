"""A small MLP of the removed layers' units: which units, their projection, the model, and its training."""

import pytest
import torch
from conftest import tiny_model
from edits import repaired, view_of
from small_runs import result, run
from test_refit import REMOVED, ridged, streams_of, workspace_of
from torch.nn import functional

from linearpatch.calibration.units import UnitScores
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.gated_units import check_gated, units_of
from linearpatch.models.modeling_linearpatch import GatedMlp
from linearpatch.models.passes import record
from linearpatch.patches.mlp import Mlp, leading_units

EPSILON = 0.3
WIDTH = 7


def normed(x):
    return x / (x.square().mean(dim=1, keepdim=True) + EPSILON).sqrt()


def unit_values(decoder, x):
    """What the hidden units of the removed layers are at the stream before them, by their own modules."""
    values = []
    for index in REMOVED:
        layer = decoder.layers[index]
        read = (normed(x).float() * layer.post_attention_layernorm.weight).float()
        values.append(functional.silu(layer.mlp.gate_proj(read)) * layer.mlp.up_proj(read))
    return torch.cat(values, dim=1).double()


def centre(rows):
    return rows - rows.mean(dim=0)


def test_units_are_those_of_the_removed_layers():
    workspace = workspace_of()
    x, *_ = streams_of(workspace)
    units = units_of(workspace.decoder, range(2, 4))
    assert torch.allclose(units.of(normed(x)), unit_values(workspace.decoder, x), rtol=1e-4, atol=1e-5)
    assert torch.equal(units.take(torch.tensor([3, 60])).gate, units.gate[:, [3, 60]])
    assert units.take(torch.tensor([3])).name != units.take(torch.tensor([4])).name


@torch.no_grad()
def test_scores_are_what_each_unit_explains_alone():
    workspace = workspace_of()
    x, y, _ = streams_of(workspace)
    units = units_of(workspace.decoder, range(2, 4))
    (found,) = workspace.collect(UnitScores(2, 4, "none", EPSILON, units.name, units))
    values, added = centre(unit_values(workspace.decoder, x)), centre(y - x)
    expected = (values.T @ added).square().sum(dim=1) / values.square().sum(dim=0)
    assert torch.allclose(found["explained"], expected, rtol=1e-3)


def test_units_are_chosen_beside_those_chosen_before():
    generator = torch.Generator().manual_seed(0)
    x, y, f = (torch.randn(200, size, generator=generator).double() for size in (4, 4, 9))
    f[:, 5] = f[:, 2] + 1e-3 * f[:, 5]  # nearly a copy
    y = x + 3 * f[:, [2]] + f[:, [7]] + 0.3 * f[:, [0]] + 0.01 * y
    rows = torch.cat([x, f, torch.ones(200, 1).double()], dim=1)
    gram = {"xx": rows.T @ rows, "xy": rows.T @ y, "bias": torch.tensor(1.0)}
    chosen = leading_units(gram, 3, 1e-6).tolist()
    assert chosen in ([0, 2, 7], [0, 5, 7])


@pytest.mark.parametrize("gain", [1, 1.3])
@torch.no_grad()
def test_the_projection_is_a_least_squares_one(gain):
    workspace = workspace_of()
    x, y, _ = streams_of(workspace)
    (fitted,) = repaired(Mlp(width=WIDTH, ridge=0.1, gain=gain, weighting="none", epsilon=EPSILON), workspace, REMOVED)
    module = fitted.module
    assert isinstance(module, GatedMlp)
    assert module.down.shape == (32, WIDTH)
    read = normed(x)
    values = functional.silu(read @ module.gate.T.double()) * (read @ module.up.T.double())
    of_layers = unit_values(workspace.decoder, x)
    for unit in values.T:
        assert ((of_layers.T - unit).abs().amax(dim=1) <= 1e-4 * unit.abs().max()).any()
    design = torch.cat([values, torch.ones(len(x), 1).double()], dim=1)
    penalty = torch.cat([0.1 * values.square().sum(dim=0), torch.zeros(1).double()])
    target = y.mean(dim=0) + gain * centre(y)
    solution = ridged(design, target - x, penalty, torch.zeros(WIDTH + 1, 32).double())
    expected = x + design @ solution
    assert torch.allclose(module(x.float()).double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_the_patched_model_computes_what_was_fitted():
    workspace = workspace_of()
    x, *_ = streams_of(workspace)
    (fitted,) = repaired(Mlp(width=WIDTH), workspace, REMOVED)
    view = decoder_of(view_of(workspace.decoder, REMOVED, [fitted]))
    found = record(view, workspace.blocks.ids).streams[2].flatten(0, 1)
    expected = fitted.module(x.float())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_more_units_explain_more_and_there_are_no_more_than_exist():
    workspace = workspace_of()
    errors = [
        repaired(Mlp(width=width, ridge=1e-6, gain=1), workspace, REMOVED)[0].diagnostics["error_after"]
        for width in (2, 20, 1000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert repaired(Mlp(width=1000), workspace, REMOVED)[0].module.down.shape[1] == 96


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "gemma2", "qwen3_moe", "phi3"])
def test_other_mlps_are_rejected(family):
    with pytest.raises(ModelError, match="isn't a gated one"):
        check_gated(decoder_of(tiny_model(family)), 0)


def test_bad_settings_are_rejected():
    with pytest.raises(ConfigError, match=r"patch\.width"):
        Mlp(width=0)
    with pytest.raises(ConfigError, match="layer 0 is removed"):
        repaired(Mlp(), workspace_of(), [0])


@pytest.mark.slow
def test_distillation_trains_all_of_it():
    settings = ["patch=mlp", "patch.width=8", "patch.compare=false", "pruner.protect_first=1", "stages=[distilled]"]
    assert run(*settings, "distill=output_kl", "distill.top_k=50", "eval=[ppl]", "output_dir=one") == 0
    found = result("one")
    assert found["distillation"]["num_trained"] == found["patch"]["num_parameters"] == 8 * 3 * 256 + 256
