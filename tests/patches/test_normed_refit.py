"""A refit whose map reads the normalised stream: both passes against rows of streams, and the model that it makes."""

import pytest
import torch
from conftest import tiny_model
from edits import repaired, view_of
from test_refit import REMOVED, ridged, streams_of, workspace_of

import linearpatch
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of, norm_epsilon
from linearpatch.models.edit import Edit
from linearpatch.models.passes import record
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.before_interface import STREAM_SHARE, before_the_map
from linearpatch.patches.normed_refit import NormedRefit

RIDGE = 0.1
EPSILON = 0.3  # so large that another one would show


def normed(x):
    return x / (x.square().mean(dim=1, keepdim=True) + EPSILON).sqrt()


def energies(rows, weight, share):
    return share * (rows * weight).square().sum(dim=0)


def with_one(*parts):
    return torch.cat([*parts, torch.ones(len(parts[0]), 1).double()], dim=1)


def centred_variance(rows, weight):
    mean = (weight.square() * rows).sum(dim=0) / weight.square().sum()
    return ((rows - mean) * weight).square().sum()


@pytest.mark.parametrize("gain", [1, 1.4, "matched"])
@pytest.mark.parametrize(("family", "relative"), [("llama", False), ("qwen3", True), ("phi3", False)])
def test_the_weight_and_the_map_are_solved_one_after_the_other(family, relative, gain):
    workspace = workspace_of(family)
    x, y, h = streams_of(workspace)
    weight = 1 / y.norm(dim=1, keepdim=True) if relative else torch.ones(len(y), 1).double()
    patch = NormedRefit(ridge=RIDGE, gain=gain, weighting="relative" if relative else "none", epsilon=EPSILON)
    if gain == "matched":
        workspace._held_out = None  # so that the gain is matched on the same rows
    fitted = repaired(patch, workspace, REMOVED)
    assert [one.place.kind for one in fitted] == ["mlp_projection", "stream"]

    n = normed(x)
    design = with_one(n, h)
    shares = torch.cat([torch.full((32,), STREAM_SHARE), torch.ones(h.shape[1])]).double()
    penalty = torch.cat([energies(torch.cat([n, h], dim=1), weight, RIDGE * shares), torch.zeros(1).double()])
    joint = ridged(design * weight, (y - x) * weight, penalty, torch.zeros(len(penalty), 32).double())
    typical = (weight.square() * x * n).sum() / (weight * n).square().sum()
    change = before_the_map(joint[32:-1], torch.eye(32).double() + joint[:32] / typical)
    assert torch.allclose(fitted[0].module.weight.T.double(), change, rtol=1e-3, atol=1e-4)

    moved = x + h @ fitted[0].module.weight.T.double()
    n = normed(moved)
    design = with_one(n)
    penalty = torch.cat([energies(n, weight, RIDGE * STREAM_SHARE), torch.zeros(1).double()])
    prior = torch.zeros(33, 32).double()
    mean = (weight.square() * y).sum(dim=0) / weight.square().sum()
    found = fitted[1].module(moved.float()).double()
    factor = fitted[1].diagnostics["gain"]
    target = mean + factor * (y - mean)
    solution = ridged(design * weight, (target - moved) * weight, penalty, prior)
    expected = moved + design @ solution
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())
    if gain == "matched":
        assert centred_variance(found, weight).item() == pytest.approx(centred_variance(y, weight).item(), rel=1e-3)
    else:
        assert factor == gain
    error = ((expected - y) * weight).square().sum() / (y * weight).square().sum()
    assert fitted[1].diagnostics["error_after"] == pytest.approx(error.item(), rel=1e-3)
    before = ((x - y) * weight).square().sum() / (y * weight).square().sum()
    assert fitted[1].diagnostics["error_before"] == pytest.approx(before.item(), rel=1e-6)


def test_the_patched_model_computes_what_was_fitted():
    workspace = workspace_of()
    x, _, h = streams_of(workspace)
    weight, stream = repaired(NormedRefit(), workspace, REMOVED)
    view = decoder_of(view_of(workspace.decoder, REMOVED, [weight, stream]))
    found = record(view, workspace.blocks.ids).streams[2].flatten(0, 1)
    expected = stream.module((x + h @ weight.module.weight.T.double()).float())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_several_interfaces_one_after_the_other_see_what_those_before_leave():
    workspace = workspace_of()
    fitted = repaired(NormedRefit(sequential=True), workspace, [1, 3])
    assert [one.place.kind for one in fitted] == ["mlp_projection", "stream"] * 2
    together = repaired(NormedRefit(), workspace, [1, 3])
    assert torch.equal(fitted[1].module.weights[0], together[1].module.weights[0])
    assert not torch.equal(fitted[3].module.weights[0], together[3].module.weights[0])


def test_what_it_is_compared_with_is_of_the_same_form():
    patch = NormedRefit(gain=1.2)
    assert all(simpler.adds_layers for simpler in patch.simpler().values())
    assert patch.draft().adds_layers


def test_the_epsilon_is_the_models_own():
    decoder = decoder_of(tiny_model(rms_norm_eps=0.25))
    assert norm_epsilon(decoder) == 0.25
    assert NormedRefit().for_model(decoder).epsilon == 0.25
    assert NormedRefit(epsilon=0.5).for_model(decoder).epsilon == 0.5


def test_it_is_fitted_from_python_with_that_epsilon():
    model = tiny_model(rms_norm_eps=0.25)
    text = "".join(chr(32 + (7 * i * i + i // 9) % 90) for i in range(3000))
    data = linearpatch.tokens([text], byte_tokenizer(), blocks=24, length=16)
    edit = linearpatch.repair(model, Edit.of_layers([2, 3]), data, patch="normed_refit")
    assert edit.new_layers[0].module.spec()["epsilon"] == 0.25


def test_bad_settings_are_rejected():
    with pytest.raises(ConfigError, match=r"patch\.gain"):
        NormedRefit(gain="best")
    with pytest.raises(ConfigError, match=r"patch\.epsilon"):
        NormedRefit(epsilon=-1.0)
    with pytest.raises(ConfigError, match="layer 0 is removed"):
        repaired(NormedRefit(), workspace_of(), [0])
