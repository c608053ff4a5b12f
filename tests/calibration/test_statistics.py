"""Each statistic against a direct computation on streams collected one forward pass at a time."""

import math

import pytest
import torch
from conftest import NUM_LAYERS

from linearpatch.calibration.gram import Gram
from linearpatch.calibration.statistics import LastTokenAngle, Magnitude, MagnitudeRatio, WindowCosine
from linearpatch.linalg.hadamard import hadamard_matrix
from linearpatch.models.passes import record


@pytest.fixture
def streams(decoder, blocks):
    """`streams[i]`: what layer i reads, `[blocks, tokens, hidden]` in fp64."""
    recorded = [record(decoder, block[None]).streams for block in blocks.ids]
    return [torch.cat([r[i] for r in recorded]).double() for i in range(NUM_LAYERS + 1)]


@pytest.mark.parametrize("window", [1, 2, NUM_LAYERS])
def test_window_cosine(workspace, streams, window):
    expected = []
    for start in range(NUM_LAYERS - window + 1):
        cosines = []
        for x, y in zip(streams[start].reshape(-1, 32), streams[start + window].reshape(-1, 32), strict=True):
            cosines.append(float(x @ y) / math.sqrt(float(x @ x) * float(y @ y)))
        expected.append(sum(cosines) / len(cosines))
    found = workspace.statistic(WindowCosine(window))["cosine"]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_the_last_stream_is_taken_before_the_final_norm(workspace, decoder, streams):
    """`output_hidden_states` would give the normed one, and another score."""
    normed = decoder.final_norm(streams[-1].float()).double()
    wrong = torch.cosine_similarity(streams[-2], normed, dim=-1).mean()
    right = torch.cosine_similarity(streams[-2], streams[-1], dim=-1).mean()
    found = workspace.statistic(WindowCosine(1))["cosine"][-1]
    assert abs(found - right) < 1e-6
    assert abs(found - wrong) > 1e-3


def test_cosine_survives_activations_that_overflow_fp16():
    from linearpatch.calibration.statistics import LayerInput

    massive = torch.zeros(1, 2, 32, dtype=torch.float16)
    massive[..., 3] = 900
    total, count = WindowCosine.compare(LayerInput(0, massive), LayerInput(1, massive))
    assert total.item() == pytest.approx(2)
    assert count == 2


@pytest.mark.parametrize("window", [1, 3])
def test_last_token_angle(workspace, streams, window):
    expected = []
    for start in range(NUM_LAYERS - window + 1):
        x, y = streams[start][:, -1], streams[start + window][:, -1]
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        expected.append(torch.arccos(cosine).mean().item() / math.pi)
    found = workspace.statistic(LastTokenAngle(window))["angle"]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("basis", ["channel", "hadamard"])
def test_magnitude(workspace, streams, basis):
    rotation = hadamard_matrix(32) if basis == "hadamard" else torch.eye(32, dtype=torch.float64)
    expected = torch.stack([(stream.reshape(-1, 32) @ rotation).abs().mean(dim=0) for stream in streams])
    assert torch.allclose(workspace.statistic(Magnitude(basis))["magnitude"], expected, atol=1e-6)


@pytest.mark.parametrize("basis", ["channel", "hadamard"])
def test_magnitude_ratio_is_the_mean_of_ratios_over_blocks(workspace, streams, basis):
    rotation = hadamard_matrix(32) if basis == "hadamard" else torch.eye(32, dtype=torch.float64)
    ratios = []
    for before, after in zip(streams[1], streams[4], strict=True):
        ratios.append((after @ rotation).abs().mean(0) / (before @ rotation).abs().mean(0))
    expected = sum(ratios) / len(ratios)
    assert torch.allclose(workspace.statistic(MagnitudeRatio(1, 4, basis))["ratio"], expected, atol=1e-6)


def test_pooled_magnitude_ratio(workspace, streams):
    ratios = [(after.abs().mean() / before.abs().mean()) for before, after in zip(streams[2], streams[5], strict=True)]
    found = workspace.statistic(MagnitudeRatio(2, 5, pooled=True))["ratio"]
    assert torch.allclose(found, torch.stack(ratios).mean()[None], atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighting", ["none", "capped", "relative"])
def test_gram(workspace, streams, bias, weighting):
    x, y = streams[1].reshape(-1, 32), streams[3].reshape(-1, 32)
    if bias:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    xx, xy, yy = torch.zeros(x.shape[1], x.shape[1]).double(), torch.zeros(x.shape[1], 32).double(), 0.0
    medians = streams[3].norm(dim=2).median(dim=1).values.repeat_interleave(streams[3].shape[1])
    for row, target, median in zip(x, y, medians, strict=True):
        cap = min(1.0, (3 * median / target.norm()).item()) ** 2
        weight = {"none": 1.0, "capped": cap, "relative": 1 / target.square().sum()}[weighting]
        xx += weight * torch.outer(row, row)
        xy += weight * torch.outer(row, target)
        yy += weight * target.square().sum()
    found = workspace.statistic(Gram(1, 3, bias=bias, weighting=weighting))
    assert torch.allclose(found["xx"], xx, rtol=1e-5, atol=1e-4)
    assert torch.allclose(found["xy"], xy, rtol=1e-5, atol=1e-4)
    assert torch.allclose(found["yy"], torch.as_tensor(yy).double(), rtol=1e-5)
    assert found["count"] == len(x)


def test_a_pass_ends_at_the_deepest_stream_needed(workspace, decoder):
    ran = []
    handles = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(decoder.layers)]
    workspace.statistic(Gram(1, 3))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1, 2}


def test_statistics_share_one_pass_and_are_remembered(workspace, decoder, blocks):
    passes = []
    handle = decoder.layers[0].register_forward_hook(lambda *_: passes.append(1))
    wanted = (WindowCosine(1), WindowCosine(2), LastTokenAngle(2), Magnitude(), Magnitude("hadamard"))
    first = workspace.collect(*wanted)
    assert len(passes) == 2  # two batches of two blocks
    again = workspace.collect(*wanted)
    handle.remove()
    assert len(passes) == 2
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_batch_size_does_not_matter(decoder, blocks):
    from linearpatch.calibration.workspace import Workspace

    one = Workspace(decoder, blocks, batch_size=1).statistic(WindowCosine(2))["cosine"]
    four = Workspace(decoder, blocks, batch_size=4).statistic(WindowCosine(2))["cosine"]
    assert torch.allclose(one, four, atol=1e-7)


def test_hooks_are_gone_after_a_pass_even_if_it_fails(decoder, blocks):
    from linearpatch.models.passes import walk

    def fail(*_):
        raise RuntimeError("visitor")

    with pytest.raises(RuntimeError, match="visitor"):
        walk(decoder, blocks.ids, fail)
    assert not any(module._forward_pre_hooks for module in decoder.model.modules())
