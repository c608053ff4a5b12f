"""Choices among sublayers: scores against slow direct versions, numbers, and what is rejected."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model

from linearpatch.calibration.sublayer_statistics import SublayerAngle, SublayerCosine
from linearpatch.calibration.weight_scores import importance, weight_norms
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.passes import walk
from linearpatch.models.units import Unit, unit_from
from linearpatch.patches.average_update import AverageUpdate
from linearpatch.patches.lstsq import LeastSquares
from linearpatch.pruners.angular import Angular
from linearpatch.pruners.explicit import Explicit
from linearpatch.pruners.magnitude import Magnitude
from linearpatch.pruners.nbl import NBL
from linearpatch.pruners.patch_aware import PatchAware
from linearpatch.pruners.perplexity import Perplexity
from linearpatch.pruners.random import Random
from linearpatch.pruners.shortgpt import ShortGPT
from linearpatch.pruners.sleb import Sleb
from linearpatch.pruners.streamline import Streamline
from linearpatch.pruners.tail import Tail
from linearpatch.pruners.taylor import Taylor

UNITS = ("attention", "mlp", "sublayer")
SCORING = [ShortGPT(), Angular(), Magnitude(1, 1), Taylor(1, 1), Perplexity(), Random(), Tail(), Sleb()]


def ids(pruner):
    return type(pruner).__name__


def streams_of(decoder, tokens):
    """What each sublayer reads, and the final norm, in order."""
    seen = []
    walk(decoder, tokens, lambda _, hidden, __: seen.append(hidden), between=range(decoder.num_layers))
    return seen


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("pruner", SCORING, ids=ids)
def test_pruners_choose_units_between_the_protected_layers(pruner, unit, workspace):
    guarded = replace(pruner, unit=unit, protect_first=2, protect_last=1)
    edit = guarded.select(workspace, 3)
    assert len(set(edit.removed)) == 3
    assert {one.layer for one in edit.removed} <= {2, 3, 4}
    assert {one.part for one in edit.removed} <= ({"attention", "mlp"} if unit == "sublayer" else {unit})
    assert edit.scores.unit == unit
    section = guarded.section(workspace.decoder, edit)
    assert section.removed == [str(one) for one in edit.removed]
    assert section.num_parameters_removed == edit.num_parameters_removed(workspace.decoder) > 0


def test_influence_is_one_less_the_cosine_of_the_stream_before_and_after(workspace, decoder, blocks):
    streams = [stream.double() for stream in streams_of(decoder, blocks.ids)]
    influence = [1 - torch.cosine_similarity(one, other, dim=-1).mean().item() for one, other in pairwise(streams)]
    for unit, expected in (("sublayer", influence), ("attention", influence[::2]), ("mlp", influence[1::2])):
        edit = ShortGPT(unit=unit).select(workspace, 2)
        assert edit.scores.values == pytest.approx(expected, abs=1e-5)
        lowest = min(range(len(expected)), key=lambda at: expected[at])
        assert str(edit.removed[0]) == edit.scores.name(lowest)
    angles = workspace.statistic(SublayerAngle())["angle"]
    cosines = [torch.cosine_similarity(one[:, -1], other[:, -1], dim=-1) for one, other in pairwise(streams)]
    expected = [(torch.arccos(cosine) / torch.pi).mean().item() for cosine in cosines]
    assert angles.tolist() == pytest.approx(expected, abs=1e-4)


def test_of_layers_takes_a_part_of_the_layers_that_shortgpt_would_remove(workspace):
    whole = ShortGPT().select(workspace, 3)
    part = ShortGPT(unit="attention", of_layers=True).select(workspace, 3)
    assert [unit.layer for unit in part.removed] == list(whole.removed_layers)
    with pytest.raises(ConfigError, match=r"pruner.of_layers=true ranks whole layers"):
        ShortGPT(unit="sublayer", of_layers=True)


def test_weights_and_gradients_of_sublayers_add_up_to_those_of_their_layers(workspace, decoder):
    norms = weight_norms(workspace, 1.0, sublayers=True)
    attention = decoder.layers[2].self_attn.parameters()
    norm = decoder.layers[2].input_layernorm.weight
    assert norms[4].item() == pytest.approx(sum(w.abs().sum().item() for w in (*attention, norm)), rel=1e-5)
    assert torch.allclose(norms.view(-1, 2).sum(1), weight_norms(workspace, 1.0))
    scores = importance(workspace, sublayers=True)
    assert torch.allclose(scores.view(-1, 2).sum(1), importance(workspace), rtol=1e-5)


def loss_without(workspace, units):
    view = Edit.without(units).view(workspace.decoder)
    logits = view(input_ids=workspace.blocks.ids, use_cache=False).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), workspace.blocks.ids[:, 1:].flatten()).item()


def divergence_without(workspace, units):
    ids = workspace.blocks.ids
    view = Edit.without(units).view(workspace.decoder)
    p, q = (
        model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        for model in (workspace.decoder.model, view)
    )
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("objective", "measure"), [("nll", loss_without), ("divergence", divergence_without)], ids=["nll", "divergence"]
)
def test_greedy_searches_measure_the_model_without_each(objective, measure, workspace):
    pruner = Sleb(0, 0, unit="sublayer", objective=objective, stop_early=False)
    edit = pruner.select(workspace, 2)
    first, second = edit.scores.steps
    for name in ("0.attention", "2.mlp", "5.attention"):
        assert first.losses[name] == pytest.approx(measure(workspace, [unit_from(name)]), rel=1e-4)
    removed = edit.removed[0]
    assert first.removed == str(removed) == min(first.losses, key=first.losses.get)
    assert len(second.losses) == len(first.losses) - 1 == 2 * NUM_LAYERS - 1
    assert second.losses[str(edit.removed[1])] == pytest.approx(measure(workspace, edit.removed), rel=1e-4)
    early = replace(pruner, stop_early=True).select(workspace, 2)
    assert early.removed == edit.removed


@pytest.mark.parametrize("search", ["greedy", "beam"])
@pytest.mark.parametrize("unit", ["attention", "sublayer"])
def test_patch_aware_searches_measure_repaired_models(search, unit, decoder):
    tokens = torch.randint(3, 300, (10, 12), generator=torch.Generator().manual_seed(8))
    patch = AverageUpdate()
    workspace = Workspace(
        decoder, TokenBlocks(tokens[:6], "random"), held_out=TokenBlocks(tokens[6:], "other"), patch=patch
    )
    edit = PatchAware(search=search, width=2, unit=unit).select(workspace, 2)
    assert {one.part for one in edit.removed} <= ({"attention"} if unit == "attention" else {"attention", "mlp"})
    repaired = patch.repair(workspace, edit)
    logits = repaired.view(decoder)(input_ids=tokens[6:], use_cache=False).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[6:, 1:].flatten()).item()
    assert min(edit.scores.steps[-1].losses.values()) == pytest.approx(loss, rel=1e-4)


def test_finalists_of_sublayers_are_fitted_the_patch_itself(decoder):
    tokens = torch.randint(3, 300, (24, 12), generator=torch.Generator().manual_seed(8))
    workspace = Workspace(
        decoder,
        TokenBlocks(tokens[:18], "random"),
        held_out=TokenBlocks(tokens[18:], "other"),
        patch=LeastSquares(ridge=0.1, features="rms_normalised", bias=True),
    )
    edit = PatchAware(search="greedy", finalists=2, unit="attention").select(workspace, 2)
    assert all(name.endswith(".attention") for one in edit.scores.finalists for name in one["removed"])


def test_nbl_ranks_by_canonical_correlations(workspace, decoder, blocks):
    streams = [stream.flatten(0, 1).double() for stream in streams_of(decoder, blocks.ids)]
    edit = NBL().select(workspace, 2)
    x = streams[4] * (streams[4].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    q, _ = torch.linalg.qr(x - x.mean(0))
    r, _ = torch.linalg.qr(streams[5] - streams[5].mean(0))
    cosines = torch.linalg.svdvals(q.T @ r)
    assert edit.scores.values[2] == pytest.approx((1 - cosines.square()).sum().item(), abs=1e-3)
    assert edit.removed[0].part == "attention"
    with pytest.raises(ConfigError, match=r"pruner.unit=layer has no meaning for pruner=nbl"):
        NBL(unit="layer")


def test_statistics_of_sublayers_share_the_pass(decoder, blocks, monkeypatch):
    passes = []
    workspace = Workspace(decoder, blocks)
    original = type(workspace)._run_pass
    monkeypatch.setattr(type(workspace), "_run_pass", lambda *a: (passes.append(1), original(*a)))
    patch = AverageUpdate()
    workspace.collect(SublayerCosine(), *(statistic.of_sublayers() for statistic in patch.statistics()))
    edit = ShortGPT(unit="sublayer").select(workspace, 2)
    patch.repair(workspace, edit)
    assert passes == [1]


def test_layers_named_by_the_user(workspace):
    removed = Explicit(layers=[3, 1], unit="attention").select(workspace, 2).removed
    assert removed == (Unit(3, "attention"), Unit(1, "attention"))
    named = Explicit(sublayers=["3.attention", "1.mlp", "2.mlp"], unit="sublayer")
    named.check(NUM_LAYERS, 2)
    assert named.select(workspace, 2).removed == (Unit(3, "attention"), Unit(1, "mlp"))
    with pytest.raises(ConfigError, match=r"pruner.sublayers=\['3.mlp'\] isn't read with pruner.unit=layer. Set"):
        Explicit(sublayers=["3.mlp"])
    with pytest.raises(ConfigError, match=r"pruner.sublayers=\['9.mlp'\] holds \['9.mlp'\], with num_pruned=1"):
        Explicit(sublayers=["9.mlp"], unit="sublayer").check(NUM_LAYERS, 1)
    every = [f"{layer}.attention" for layer in range(NUM_LAYERS)]
    with pytest.raises(ModelError, match="No attention would be left"):
        Explicit(sublayers=every, unit="sublayer").check(NUM_LAYERS, NUM_LAYERS)


@pytest.mark.parametrize(
    ("unit", "most"), [("attention", NUM_LAYERS - 1), ("mlp", NUM_LAYERS), ("sublayer", 2 * NUM_LAYERS - 1)]
)
def test_so_many_sublayers_and_no_more(unit, most, workspace):
    pruner = ShortGPT(unit=unit)
    pruner.check(NUM_LAYERS, most)
    with pytest.raises(ConfigError, match=rf"num_pruned is {most + 1}, but {most} .*Allowed: 1 to {most}\."):
        pruner.check(NUM_LAYERS, most + 1)
    edit = pruner.select(workspace, most)
    assert edit.view(workspace.decoder).config.linear_removed


def test_units_that_a_pruner_or_a_search_lacks():
    with pytest.raises(ConfigError, match=r"pruner.unit=mlp has no meaning for pruner=streamline.*shortgpt"):
        Streamline(unit="mlp")
    with pytest.raises(ConfigError, match=r"pruner.unit is 'head'"):
        ShortGPT(unit="head")
    with pytest.raises(ConfigError, match=r"pruner.iterative=true chooses whole layers"):
        ShortGPT(unit="mlp", iterative=True)
    with pytest.raises(ConfigError, match=r"pruner.search=window tries windows of whole layers"):
        PatchAware(unit="attention")


def test_families_without_separate_sublayers_are_rejected_by_name():
    decoder = decoder_of(tiny_model("gptj"))
    workspace = Workspace(decoder, TokenBlocks(torch.randint(3, 300, (2, 12)), "random"))
    for pruner in (ShortGPT(unit="attention"), Magnitude(1, 1, unit="mlp"), Sleb(unit="sublayer"), NBL()):
        with pytest.raises(ModelError, match="GPTJBlock has parallel residuals"):
            pruner.select(workspace, 2)


def test_families_are_rejected_before_anything_is_computed():
    decoder = decoder_of(tiny_model("falcon"))
    ShortGPT().check_family(decoder)
    for pruner in (Random(unit="mlp"), Tail(unit="attention"), Explicit(layers=[1], unit="mlp")):
        with pytest.raises(ModelError, match="FalconDecoderLayer has parallel residuals"):
            pruner.check_family(decoder)
