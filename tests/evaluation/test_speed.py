"""Speed: who runs when, what is counted, and ratios of rounds."""

import pytest
import torch
from conftest import measurements_of, tiny_model
from edits import edit_of, on_stream, view_of

from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError
from linearpatch.evaluation import speed
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.speed import Speed, ratio_of_rounds
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import LinearMap

SMALL = {"lengths": [16], "new_tokens": 3, "rounds": 4, "warmup": 1}


def stages() -> list[Subject]:
    dense = decoder_of(tiny_model())
    patch = (on_stream(2, 4, reader=4), LinearMap(torch.eye(32)))
    pruned, patched = (decoder_of(view_of(dense, [2, 3], patches)) for patches in ([], [patch]))
    return [
        Subject("dense", dense, dense),
        Subject("pruned", pruned, dense, edit_of((2, 3))),
        Subject("patched", patched, dense, edit_of((2, 3))),
    ]


def measure(subjects=None, **settings):
    subjects = subjects or stages()
    prepared = measurements_of(Speed(**{**SMALL, **settings}), "speed", Reader(None, "evaluation"), None)
    found = [measurement.run(subjects, lambda count: None) for measurement in prepared]
    return {s.stage: {k: v for one in found for k, v in one[i].metrics.items()} for i, s in enumerate(subjects)}


def test_every_stage_has_every_number_with_its_spread():
    found = measure()
    assert {name.partition("/")[2] for name in found["dense"]} == {
        "prefill_tokens_per_s", "decode_tokens_per_s", "prefill_s", "decode_step_s", "peak_memory_bytes",
        "num_parameters", "prefill_flops", "kv_cache_bytes_per_token",
    }  # fmt: skip
    for stage, metrics in found.items():
        assert metrics["speed/prefill_tokens_per_s"].value > 0
        assert metrics["speed/prefill_tokens_per_s"].stderr is not None
        assert metrics["speed/prefill_s"].n == 4
        bases = {"dense": set(), "pruned": {"dense"}, "patched": {"dense", "pruned"}}[stage]
        for phase in ("prefill", "decode"):
            versus = metrics[f"speed/{phase}_tokens_per_s"].versus
            assert set(versus) == bases
            for ratio in versus.values():
                assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


def test_parameters_and_operations_are_counted():
    subjects = stages()
    found = measure(subjects)
    layer = sum(parameter.numel() for parameter in subjects[0].decoder.layers[0].parameters())
    counts = {stage: metrics["speed/num_parameters"].value for stage, metrics in found.items()}
    assert counts["dense"] - counts["pruned"] == 2 * layer
    assert counts["patched"] - counts["pruned"] == 32 * 32
    flops = {stage: metrics["speed/prefill_flops"].value for stage, metrics in found.items()}
    assert flops["patched"] - flops["pruned"] == 2 * 16 * 32 * 32  # one matrix product over 16 tokens
    matrices = sum(p.numel() for p in subjects[0].decoder.layers[0].parameters() if p.ndim == 2)
    attention = 2 * 2 * 16 * 16 * 32  # scores, and their product with the values
    assert flops["dense"] - flops["pruned"] == 2 * (2 * 16 * matrices + attention)


def test_further_settings_have_names_of_their_own():
    found = measure(batch_sizes=[1, 2], rounds=2)["dense"]
    assert found["speed/prefill_tokens_per_s"].headline
    assert not found["speed/2x16/prefill_tokens_per_s"].headline
    assert "batch 2, 16 tokens" in found["speed/2x16/prefill_tokens_per_s"].protocol


def test_stages_take_turns(monkeypatch):
    order = []

    def generate(decoder, prompt, new_tokens):
        order.append(decoder.num_layers + sum("linear_patch" in name for name, _ in decoder.model.named_parameters()))
        return 1.0, 1.0

    monkeypatch.setattr(speed, "generation_times", generate)
    measure(rounds=2, warmup=1)
    dense, pruned, patched = 6, 4, 5
    assert order == [dense, pruned, patched, pruned, patched, dense, patched, dense, pruned]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    # A slow round slows both: its ratio is like the others'.
    found = ratio_of_rounds([2.0, 2.2, 20.0, 2.0, 2.1], [1.0, 1.0, 10.0, 1.0, 1.0])
    assert found["ratio"] == pytest.approx(2.0)
    assert found["low"] == pytest.approx(2.0)
    assert found["high"] == pytest.approx(2.1)


@pytest.mark.parametrize(
    "settings", [{"batch_sizes": []}, {"lengths": [0]}, {"rounds": 1}, {"new_tokens": 0}, {"warmup": -1}]
)
def test_impossible_settings_are_rejected(settings):
    with pytest.raises(ConfigError, match=r"eval\.speed"):
        Speed(**settings)
