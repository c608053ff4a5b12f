"""What runs on a GPU gives what it gives on the CPU: every pruner, every patch, distillation, whole runs.

`LINEARPATCH_TEST_DEVICE=cpu` runs the same comparisons without a GPU, where they must hold trivially.
"""

import os
from itertools import cycle

import pytest
import torch
from conftest import NUM_LAYERS, tiny_model
from edits import repaired, view_of
from small_runs import result

import linearpatch
from linearpatch.calibration import candidate_losses
from linearpatch.calibration.candidate_losses import CandidateSearch
from linearpatch.calibration.workspace import Workspace
from linearpatch.cli import main
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.passes import record
from linearpatch.models.random import byte_tokenizer
from linearpatch.patches.rotate import Rotate
from linearpatch.pruners.evolution import Evolution
from linearpatch.pruners.explicit import Explicit
from linearpatch.pruners.llm_pruner import LlmPruner
from linearpatch.registry import components

DEVICE = os.environ.get("LINEARPATCH_TEST_DEVICE", "cuda")
REMOVED = (2, 3)

pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


def random_blocks(count, seed):
    return TokenBlocks(torch.randint(3, 300, (count, 16), generator=torch.Generator().manual_seed(seed)), "random")


def workspace_on(device, patch=None):
    decoder = decoder_of(tiny_model("llama").to(device))
    return Workspace(decoder, random_blocks(48, 1), held_out=random_blocks(4, 2), batch_size=4, patch=patch)


@pytest.mark.parametrize("name", sorted(set(components("pruner")) - {"task"}))  # whose questions are a task's
def test_every_pruner_removes_the_same_layers(name):
    cls = components("pruner")[name]
    own = {
        Explicit: {"layers": [3, 1]},
        LlmPruner: {"protect_first": 1, "protect_last": 1},
        Evolution: {"generations": 3},
    }
    pruner = cls(**own.get(cls, {}))
    expected, found = (pruner.chooser.select(workspace_on(device, Rotate()), 2) for device in ("cpu", DEVICE))
    assert found.removed_layers == expected.removed_layers
    assert found.narrowed == expected.narrowed


@pytest.mark.parametrize("name", sorted(set(components("patch")) - {"none"}))
def test_every_patch_computes_the_same(name):
    patch = components("patch")[name]()
    logits = []
    for device in ("cpu", DEVICE):
        workspace = workspace_on(device)
        fitted = repaired(patch, workspace, REMOVED)
        view = view_of(workspace.decoder, REMOVED, fitted)
        assert {parameter.device.type for parameter in view.parameters()} == {torch.device(device).type}
        logits.append(view(input_ids=workspace.blocks.ids[:2].to(device)).logits.cpu())
    assert torch.allclose(*logits, rtol=1e-3, atol=1e-3 * logits[0].abs().max())


def test_a_pass_sees_the_same_streams():
    streams = [
        record(workspace_on(device).decoder, random_blocks(1, 3).ids).streams[NUM_LAYERS].cpu()
        for device in ("cpu", DEVICE)
    ]
    assert torch.allclose(*streams, rtol=1e-4, atol=1e-4)


def test_a_search_with_offloaded_streams_finds_the_same_losses():
    workspace = workspace_on(DEVICE)
    batches = random_blocks(6, 3).ids.to(DEVICE).split(2)
    edits = [Edit.of_layers([layer]) for layer in range(NUM_LAYERS)]
    losses = []
    for offload in (False, True):
        search = CandidateSearch(workspace.decoder, batches, offload=offload)
        search.move(edits[2])
        losses.append([one.loss for one in search.losses(edits)])
        devices = {stream.device.type for streams in search._streams for stream in streams}
        assert devices == {"cpu" if offload else torch.device(DEVICE).type}
    assert losses[0] == losses[1]


def test_streams_that_have_no_room_are_offloaded(monkeypatch):
    workspace = workspace_on(DEVICE)
    batches = random_blocks(6, 3).ids.to(DEVICE).split(2)
    edits = [Edit.of_layers([layer]) for layer in range(NUM_LAYERS)]
    expected = [one.loss for one in CandidateSearch(workspace.decoder, batches).losses(edits)]
    answers = cycle([True, False])
    monkeypatch.setattr(candidate_losses, "has_room", lambda *_, **__: next(answers))
    search = CandidateSearch(workspace.decoder, batches)
    assert {stream.device.type for streams in search._streams for stream in streams} == {"cpu", "cuda"}
    assert [one.loss for one in search.losses(edits)] == expected


@pytest.mark.parametrize("settings", [("patch=rotate", "distill=output_kl"), ("pruner=patch_aware", "patch=refit")])
def test_a_whole_run_measures_and_saves_the_same(settings, tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    measured = {}
    for device in ("cpu", DEVICE):
        folder = tmp_path / f"on-{device}"
        monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / f"cache-{device}"))
        chosen = ("model=hub", f"model.path={tmp_path}/dense", f"model.device={device}", *settings)
        text = ("calibration.num_blocks=8", "calibration.held_out_blocks=2", "eval=[ppl,smoke,speed]")
        saved = ("debug=tiny", "num_pruned_layers=2", "tracker=none", "save_model=true", f"output_dir={folder}")
        assert main(["run", *chosen, *text, *saved]) == 0
        found = result(folder)
        measured[device] = {stage: metrics["ppl/pydoc"]["value"] for stage, metrics in found["metrics"].items()}
    assert measured[DEVICE] == pytest.approx(measured["cpu"], rel=1e-2)
    model = linearpatch.load(tmp_path / f"on-{DEVICE}" / "model")
    assert torch.isfinite(model(input_ids=torch.arange(3, 20)[None]).logits).all()
