"""What the benchmarks compare against is right; the figures themselves are not tests."""

import io
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from rich.console import Console

from benchmarks import BENCHMARKS, distill, heal, sleb
from benchmarks.measure import Claim, claims_table, time_ratio
from linearpatch.calibration.workspace import Workspace
from linearpatch.cli import main
from linearpatch.data.blocks import TokenBlocks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.units import Interface
from linearpatch.pruners.sleb import Sleb


def test_the_exhaustive_search_runs_every_remaining_layer_and_finds_the_same(monkeypatch):
    monkeypatch.setattr(sleb, "REMOVED", 3)
    decoder = decoder_of(tiny_model())
    ids = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    found, forwards = sleb.exhaustive(decoder, ids.split(1))
    assert forwards == 3 * (4 * 5 + 3 * 4 + 2 * 3)  # batches × (candidates × remaining layers)
    assert list(Sleb().select(Workspace(decoder, TokenBlocks(ids, "t")), 3).removed_layers) == found


def test_the_published_procedure_ends_with_the_same_patch(monkeypatch):
    monkeypatch.setattr(distill, "TRAINING", replace(distill.TRAINING, top_k=20, learning_rate=1e-2))
    ids = torch.randint(3, 300, (7, 12), generator=torch.Generator().manual_seed(0))
    case = distill.Case(decoder_of(tiny_model()), Interface(2, 4), LinearMap(torch.eye(32)), ids[:5], ids[5:])
    published = distill.published_epoch(case).weight
    loop = case.loop()
    distill.epoch_of(loop)
    assert torch.allclose(loop.student.edit.operators[0].module.operator().weight, published, atol=1e-5)
    assert not torch.allclose(published, torch.eye(32), atol=1e-3)


def test_two_models_have_the_same_losses(monkeypatch):
    monkeypatch.setattr(heal, "START", 2)
    monkeypatch.setattr(heal, "END", 4)
    ids = torch.randint(3, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    case = distill.Case(decoder_of(tiny_model()), Interface(2, 4), LinearMap(torch.eye(32)), ids[:4], ids[4:])
    settings = {**heal.LORA_BEHIND, "top_k": 20}
    loop = heal.loop_of(case, **settings)
    plain = heal.TwoModels(case, heal.loop_of(case, **settings))
    losses = [(loop.advance(), plain.advance()) for _ in range(6)]
    assert all(ours == pytest.approx(other, rel=1e-4) for ours, other in losses)
    assert losses[0][0] != pytest.approx(losses[4][0], rel=1e-3)
    assert heal.trained_layers(loop) == [4, 5]


def test_a_table_shows_measured_against_limit():
    console = Console(file=io.StringIO(), width=120)
    console.print(claims_table("name", [Claim("what", 0.5, 2.0, "MiB", "on")]))
    assert "0.25" in console.file.getvalue()


def test_a_time_ratio_compares_pairs():
    ratio, mine, other = time_ratio(lambda: sum(range(200_000)), lambda: sum(range(1000)), repeats=3)
    assert ratio > 1
    assert mine > other


def test_an_unknown_benchmark_is_rejected():
    assert main(["bench", "slebb"]) == 1
    assert set(BENCHMARKS) == {
        "startup", "statistics", "sleb", "patch_aware", "taylor", "perplexity", "divergence", "harness", "distill",
        "heal", "generate", "report", "memory",
    }  # fmt: skip
