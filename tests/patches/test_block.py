"""Layers next to interfaces, trained on the stream that they must produce."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from small_runs import result, run
from test_refit import random_blocks, workspace_of

import linearpatch
from linearpatch.calibration.comparison import repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.passes import record
from linearpatch.patches import local_training
from linearpatch.patches.block import Block
from linearpatch.patches.mlp_refit import MlpRefit
from linearpatch.storage.cache import Cache

REMOVED = [2, 3]
QUICK = Block(steps=20, learning_rate=1e-3)


def streams_without(workspace, edit, reader, ids):
    """What a layer of the edited model reads, and what it read in the dense model."""
    kept = [layer for layer in range(7) if layer not in edit.removed_layers]
    view = decoder_of(edit.view(workspace.decoder))
    edited = record(view, ids).streams[kept.index(reader)]
    return edited, record(workspace.decoder, ids).streams[reader]


def error_of(workspace, edit, reader, *, weighted=True):
    """Mean over held-out batches of Σ w ‖x̂ − y‖² / Σ w ‖y‖², computed from whole models."""
    errors = []
    for ids in workspace.held_out.ids.split(workspace.batch_size):
        edited, dense = (stream.double() for stream in streams_without(workspace, edit, reader, ids))
        norms = dense.norm(dim=-1)
        most = 3 * norms.median(dim=1, keepdim=True).values
        weight = (most / norms).clamp(max=1).square() if weighted else torch.ones_like(norms)
        errors.append((weight * (edited - dense).square().sum(-1)).sum() / (weight * norms.square()).sum())
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize(("side", "layers", "reader"), [("before", {1}, 4), ("after", {4}, 5), ("both", {1, 4}, 5)])
@pytest.mark.slow
def test_the_stream_behind_comes_closer_on_held_out_text(side, layers, reader):
    workspace = workspace_of()
    patch = replace(QUICK, side=side)
    edit = patch.repair(workspace, Edit.of_layers(REMOVED))
    start = MlpRefit(ridge="auto").repair(workspace, Edit.of_layers(REMOVED))
    assert {name.layer for name in edit.weights} == layers
    (placed,) = edit.operators
    found = placed.diagnostics
    assert found["error_start"] == pytest.approx(error_of(workspace, start, reader), rel=1e-4)
    assert found["error_held_out"] == pytest.approx(error_of(workspace, edit, reader), rel=1e-4)
    assert found["error_held_out"] < 0.95 * found["error_start"]
    assert 0 < found["best_step"] <= found["steps"] <= 20
    assert not any(p.requires_grad for change in edit.weights.values() for p in change.parameters())


@pytest.mark.parametrize("family", ["gpt2", "opt", "granite", "phi3"])
def test_of_other_families_as_well(family):
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_inner": 48, "n_positions": 64}
        model = tiny_model(family, **sizes, **dict.fromkeys(("hidden_size", "num_hidden_layers", "intermediate_size")))
    else:
        model = tiny_model(family)
    workspace = Workspace(decoder_of(model), random_blocks(20, 8), held_out=random_blocks(4, 9), batch_size=4)
    edit = QUICK.repair(workspace, Edit.of_layers(REMOVED))
    assert edit.operators[0].diagnostics["error_held_out"] == pytest.approx(error_of(workspace, edit, 4), rel=1e-3)


def test_training_that_helps_nothing_leaves_its_start():
    workspace = workspace_of()
    edit = replace(QUICK, learning_rate=10.0).repair(workspace, Edit.of_layers(REMOVED))
    (start,) = MlpRefit(ridge="auto").repair(workspace, Edit.of_layers(REMOVED)).operators
    assert not edit.weights
    assert torch.equal(edit.operators[0].module.weight, start.module.weight)
    assert edit.operators[0].diagnostics["best_step"] == 0
    assert edit.operators[0].diagnostics["steps"] == 6  # three checks without a lower error end it


def test_the_second_interface_sees_what_the_first_leaves():
    workspace = workspace_of()
    both = Edit.of_layers([1, 3])
    edit = replace(QUICK, sequential=True, steps=5).repair(workspace, both)
    first = Edit.of_layers([1]).with_operators(edit.operators[:1])
    first = first.with_weights({name: change for name, change in edit.weights.items() if name.layer == 0})
    stream = record(decoder_of(first.view(workspace.decoder)), workspace.blocks.ids[:4]).streams[1]
    before = edit.before(3).with_operators(edit.operators[:1]).with_weights(first.weights)
    gram = QUICK.gram(edit.operators[1].site)
    lessons = local_training.lessons_of(workspace.decoder, [workspace.blocks.ids[:4]], before, 2, 4, gram)
    assert torch.allclose(lessons[0].stream, stream, atol=1e-5)
    together = replace(QUICK, steps=5).repair(workspace, both)
    assert not torch.equal(together.operators[1].module.weight, edit.operators[1].module.weight)


@pytest.mark.parametrize("side", ["before", "both"])
def test_interfaces_that_share_a_layer_are_taken_in_turn(side):
    workspace = workspace_of()
    edit = replace(QUICK, sequential=True, steps=5, side=side).repair(workspace, Edit.of_layers([1, 3]))
    reader = 4 if side == "before" else 5
    assert edit.operators[1].diagnostics["error_held_out"] == pytest.approx(error_of(workspace, edit, reader), rel=1e-3)


def test_comparisons_keep_the_weights_or_leave_all_of_them(monkeypatch):
    workspace = workspace_of()
    kept = repair(workspace, QUICK, Edit.of_layers(REMOVED))
    names = {candidate.name for candidate in kept.comparison.candidates}
    assert names == {"as set", "mlp_refit, its start", "no patch"}
    assert bool(kept.edit.weights) == (kept.comparison.kept == "as set")
    monkeypatch.setattr(
        "linearpatch.calibration.comparison.compare", lambda *_: [replace(kept.comparison, kept="no patch")]
    )
    idle = repair(workspace, QUICK, Edit.of_layers(REMOVED)).edit
    edited, _ = streams_without(workspace, idle, 4, workspace.blocks.ids[:2])
    pruned, _ = streams_without(workspace, Edit.of_layers(REMOVED), 4, workspace.blocks.ids[:2])
    assert torch.allclose(edited, pruned)


def test_a_training_is_read_from_the_cache(tmp_path, monkeypatch):
    first = QUICK.repair(cached(tmp_path), Edit.of_layers(REMOVED))
    monkeypatch.setattr(local_training.LocalTraining, "run", None)
    again = QUICK.repair(cached(tmp_path), Edit.of_layers(REMOVED))
    assert again.identity() == first.identity()
    assert list(again.weights) == list(first.weights)


def cached(folder):
    like = workspace_of()
    return Workspace(like.decoder, like.blocks, held_out=like.held_out, batch_size=4, cache=Cache(folder))


def test_what_cant_be_trained_is_rejected():
    workspace = workspace_of()
    with pytest.raises(ConfigError, match=r"after layer 5 there is none. Use patch.side=before"):
        replace(QUICK, side="after").repair(workspace, Edit.of_layers([4, 5]))
    with pytest.raises(ConfigError, match=r"Layer 2 lies between two interfaces.*sequential=true"):
        replace(QUICK, side="both").repair(workspace, Edit.of_layers([1, 3]))
    with pytest.raises(ConfigError, match=r"needs a layer before the interface"):
        QUICK.repair(workspace, Edit.of_layers([0]))
    with pytest.raises(ConfigError, match="No calibration tokens are held out"):
        QUICK.repair(Workspace(workspace.decoder, workspace.blocks), Edit.of_layers(REMOVED))
    with pytest.raises(ConfigError, match=r"patch.side is 'front'"):
        Block(side="front")


@pytest.mark.slow
def test_a_run_saves_a_plain_checkpoint_that_distillation_can_start_from(tmp_path):
    settings = ["patch=block", "patch.steps=4", "patch.compare=false", "save_model=true", "save_format=plain"]
    heal = ["distill=output_kl", "distill.learning_rate=1e-4", "distillation.num_blocks=4"]
    assert run(*settings, *heal, f"output_dir={tmp_path}/D") == 0
    record_ = result(tmp_path / "D")
    assert record_["patch"]["num_parameters"] == 0
    assert 0 < record_["patch"]["sites"][0]["steps"] <= 4
    model = linearpatch.load(tmp_path / "D")
    assert not any("linear_patch" in name for name, _ in model.named_parameters())
