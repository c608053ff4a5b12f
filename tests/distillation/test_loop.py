"""Training as a whole: it learns, it resumes where it was, it reads what it kept, it stops where it must."""

import math
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, on_stream

from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation import distill as module
from linearpatch.distillation.distill import distill
from linearpatch.distillation.distilled import TrainingFailed
from linearpatch.distillation.feature_mse import FeatureMSE
from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.sources import SHARD, calls_of_shape, order_of_epoch
from linearpatch.errors import ConfigError, ModelError, StorageError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap
from linearpatch.runtime.signals import Terminated
from linearpatch.storage.cache import Cache

TRAINING = OutputKL(top_k=20, learning_rate=3e-3, batch_size=2, validations=3, checkpoint_minutes=None)
REMOVED, SITE, SIZE = (2, 3), on_stream(2, 4, 4), 32
PATCH = [(SITE, LinearMap(torch.eye(SIZE)))]


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TokenBlocks(torch.randint(3, 300, (count, 12), generator=generator), f"random/{seed}")


TEXT, VALIDATION = tokens(20, 1), tokens(4, 2)


def train(training=TRAINING, *, decoder=None, patches=PATCH, removed=REMOVED, text=TEXT, **settings):
    decoder = decoder or decoder_of(tiny_model())
    return distill(training, decoder, edit_of(removed, patches), text, VALIDATION, **settings)


def weights(distilled):
    return [placed.module.weight for placed in distilled.edit.operators]


def validation_losses(distilled):
    return [point["validation_loss"] for point in distilled.history if "validation_loss" in point]


@pytest.mark.parametrize(
    "training",
    [
        TRAINING,
        replace(TRAINING, patch_form="diagonal", learning_rate=3e-2),
        replace(TRAINING, patch_form="diagonal", basis="channel", learning_rate=3e-2),
        replace(TRAINING, patch_form="low_rank", rank=4),
        replace(TRAINING, decay_toward="initial", weight_decay=0.1),
        replace(TRAINING, accumulation=2, max_grad_norm=None, recompute=True),
        replace(TRAINING, temperature=2.0, epochs=2),
        FullKL(learning_rate=1e-2, batch_size=2),
        FeatureMSE(learning_rate=1e-2, batch_size=2),
    ],
    ids=lambda training: f"{type(training).__name__} {training.patch_form}",
)
def test_the_validation_loss_falls(training):
    found = train(replace(training, epochs=3))
    losses = validation_losses(found)
    assert min(losses) < 0.995 * losses[0]
    assert losses[0] == found.history[0]["validation_loss"]
    assert found.best_step > 0
    assert found.num_steps == 3 * math.ceil(20 / (2 * training.accumulation))


def test_several_interfaces_and_kinds_of_operators_train_together():
    sites = [on_stream(1, 2, 2), on_stream(3, 5, 5)]
    patches = [(sites[0], ChannelScale(torch.ones(SIZE))), (sites[1], LinearMap(torch.eye(SIZE), torch.zeros(SIZE)))]
    found = train(patches=patches, removed=(1, 3, 4))
    assert min(validation_losses(found)) < validation_losses(found)[0]
    assert [placed.site for placed in found.edit.operators] == sites
    assert all(not torch.equal(weight, torch.eye(SIZE)) for weight in weights(found))
    assert found.edit.operators[1].module.bias.abs().sum() > 0


def test_two_patches_at_one_place_train_together():
    patches = [(on_stream(layer, layer + 1, 4), LinearMap(torch.eye(SIZE))) for layer in (2, 3)]
    found = train(patches=patches)
    assert all(not torch.equal(weight, torch.eye(SIZE)) for weight in weights(found))


def test_the_best_patch_is_kept_not_the_last():
    found = train(replace(TRAINING, learning_rate=3.0, max_grad_norm=None))
    losses = validation_losses(found)
    assert losses[-1] > min(losses)
    again = train(replace(TRAINING, learning_rate=1e-30), patches=found.edit.operators)
    assert validation_losses(again)[0] == pytest.approx(min(losses), rel=1e-4)


def test_accumulation_is_a_larger_batch():
    large = train(replace(TRAINING, batch_size=4))
    small = train(replace(TRAINING, batch_size=1, accumulation=4))
    assert torch.allclose(weights(large)[0], weights(small)[0], atol=1e-5)


def test_online_and_cached_give_the_same_patch(tmp_path):
    online = train()
    cached = train(replace(TRAINING, targets="cached"), cache=Cache(tmp_path))
    assert torch.equal(weights(online)[0], weights(cached)[0])
    assert online.history[0] == cached.history[0]


def test_kept_states_give_the_same_patch_in_bf16(tmp_path):
    decoder = decoder_of(tiny_model().bfloat16())
    online = train(decoder=decoder)
    kept = replace(TRAINING, targets="cached", keep_states=True)
    cached = train(kept, decoder=decoder, cache=Cache(tmp_path))
    assert torch.equal(weights(online)[0], weights(cached)[0])


def test_kept_targets_are_small_and_serve_every_patch_and_epoch(tmp_path, monkeypatch):
    kept = replace(TRAINING, targets="cached", keep_states=True)
    text = tokens(2 * SHARD + 5, 3)
    train(kept, text=text, cache=Cache(tmp_path))
    all_tokens = (len(text.ids) + len(VALIDATION.ids)) * 12
    header = 1024  # of a file
    sizes = {
        kind: [f.stat().st_size for f in (tmp_path / kind).glob("*.safetensors")] for kind in ("targets", "states")
    }
    assert len(sizes["targets"]) == len(sizes["states"]) == 3
    assert sum(sizes["targets"]) <= 6 * TRAINING.top_k * all_tokens + 3 * header
    assert sum(sizes["states"]) <= 2 * SIZE * all_tokens + 3 * header

    class NoTeacher:
        def __init__(self, *arguments):
            raise AssertionError("the dense model was asked again")

    monkeypatch.setattr("linearpatch.distillation.sources.Online", NoTeacher)
    other = [(SITE, ChannelScale(torch.full((SIZE,), 1.1)))]
    train(replace(kept, epochs=2, learning_rate=1e-3), text=text, patches=other, cache=Cache(tmp_path))


def test_targets_serve_other_layers_too(tmp_path):
    kept = replace(TRAINING, targets="cached")
    train(kept, cache=Cache(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "targets").glob("*.safetensors")}
    site = on_stream(1, 2, 2)
    train(kept, removed=(1,), patches=[(site, LinearMap(torch.eye(SIZE)))], cache=Cache(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "targets").glob("*.safetensors")} == before


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_shard_is_told_and_recreated(tmp_path, caplog, damage):
    kept = replace(TRAINING, targets="cached")
    expected = train(kept, cache=Cache(tmp_path))
    for file in (tmp_path / "targets").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[-5] ^= 1
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    for file in (tmp_path / "distillation").glob("*.safetensors"):
        file.unlink()
    found = train(kept, cache=Cache(tmp_path))
    assert torch.equal(weights(found)[0], weights(expected)[0])
    assert "is damaged" in caplog.text
    assert str(tmp_path / "targets") in caplog.text


def test_targets_that_the_disk_has_no_room_for_are_rejected(tmp_path, monkeypatch):
    kept = replace(TRAINING, targets="cached")
    with monkeypatch.context() as full:
        full.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
        with pytest.raises(StorageError, match="targets=online"):
            train(kept, cache=Cache(tmp_path))
        assert not list(tmp_path.rglob("*.safetensors"))
    train(kept, cache=Cache(tmp_path))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    train(replace(kept, learning_rate=1e-3), cache=Cache(tmp_path))  # everything is there


def test_calls_that_depend_on_the_tokens_are_rejected(monkeypatch):
    decoder = decoder_of(tiny_model())
    assert set(calls_of_shape(decoder, 2, 12)) == set(range(7))
    forward = type(decoder.body).forward

    def strange(self, input_ids, **settings):
        return forward(self, input_ids, position_ids=input_ids % 7, **settings)

    monkeypatch.setattr(type(decoder.body), "forward", strange)
    with pytest.raises(ModelError, match="targets=online"):
        calls_of_shape(decoder, 2, 12)


@pytest.mark.parametrize("trainable", ["full", "low_rank"])
@pytest.mark.parametrize("stop_after", [1, 7, 10, 13])
def test_a_training_that_was_stopped_ends_as_if_it_hadnt(tmp_path, stop_after, trainable, monkeypatch):
    monkeypatch.setattr("linearpatch.distillation.loop.POINTS", 7)  # each point of the curve is a mean of three steps
    training = replace(TRAINING, epochs=2, patch_form=trainable)
    whole = train(training)

    def stopping(step, *_):
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("linearpatch.distillation.loop.training_bar", lambda *_: nullcontext(stopping))
    cache = Cache(tmp_path)
    with pytest.raises(Terminated, match=f"SIGTERM after step {stop_after} of 20"):
        train(training, cache=cache)
    monkeypatch.setattr("linearpatch.distillation.loop.training_bar", lambda *_: nullcontext(lambda *_: None))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    points = []
    again = train(training, cache=Cache(tmp_path), report=points.append)
    assert torch.equal(weights(again)[0], weights(whole)[0])
    assert points == list(again.history)
    strip = [{name: value for name, value in point.items() if name != "tokens_per_s"} for point in again.history]
    assert strip == [{n: v for n, v in point.items() if n != "tokens_per_s"} for point in whole.history]
    assert not list((tmp_path / "distillation_state").glob("*.safetensors"))


def test_a_finished_training_isnt_repeated(tmp_path, monkeypatch):
    first = train(cache=Cache(tmp_path))
    monkeypatch.setattr(module, "Loop", None)
    points = []
    again = train(cache=Cache(tmp_path), report=points.append)
    assert torch.equal(weights(again)[0], weights(first)[0])
    assert points == list(first.history)


def test_a_state_of_another_training_isnt_taken(tmp_path, caplog):
    def stopping(point):
        if point["step"] == 3 and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    for training in (TRAINING, replace(TRAINING, learning_rate=1e-3)):
        with pytest.raises(Terminated):
            train(training, cache=Cache(tmp_path), report=stopping)
    first, second = (tmp_path / "distillation_state").glob("*.safetensors")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    found = train(cache=Cache(tmp_path))
    assert "was computed with other settings" in caplog.text
    assert torch.equal(weights(found)[0], weights(train())[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_a_master_copy(dtype):
    decoder = decoder_of(tiny_model().to(dtype))
    found = train(replace(TRAINING, learning_rate=3e-3), decoder=decoder)
    assert min(validation_losses(found)) < validation_losses(found)[0]
    assert weights(found)[0].dtype == torch.float32


def test_a_loss_that_isnt_finite_ends_it_with_the_best_patch(monkeypatch):
    real, calls = OutputKL.loss, []

    def breaking(self, student, lesson):
        loss = real(self, student, lesson)
        calls.append(loss.requires_grad)
        return loss * math.nan if calls.count(True) == 8 else loss

    monkeypatch.setattr(OutputKL, "loss", breaking)
    with pytest.raises(
        TrainingFailed, match=r"nan at step 8 of 10.*lower\s+distill.learning_rate \(now 0.003\)"
    ) as caught:
        train()
    best = caught.value.distilled
    assert 0 < best.best_step < 8
    monkeypatch.setattr(OutputKL, "loss", real)
    again = train(replace(TRAINING, learning_rate=1e-30), patches=best.edit.operators)
    assert validation_losses(again)[0] == pytest.approx(min(validation_losses(best)), rel=1e-4)


def test_a_patch_that_is_broken_from_the_beginning_is_told(monkeypatch):
    broken = [(SITE, LinearMap(torch.full((SIZE, SIZE), math.nan)))]
    with pytest.raises(TrainingFailed, match=r"validation loss is nan at step 0 of 10.*look at the fitted patch"):
        train(patches=broken)


def test_no_patch_is_no_training():
    with pytest.raises(ConfigError, match="no patch to distil"):
        train(patches=[])


def test_every_epoch_has_every_sequence_once_and_groups_stay_together():
    count = 3 * SHARD + 7
    first, second = order_of_epoch(count, 0, 5), order_of_epoch(count, 1, 5)
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second
    assert first != order_of_epoch(count, 0, 6)
    groups = [row // SHARD for row in first]
    assert sum(before != after for before, after in pairwise(groups)) == 3


def test_without_a_folder_a_stopped_training_resumes_from_memory(monkeypatch):
    cache, whole = Cache(), train()

    def stopping(point):
        if point["step"] == 4 and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        train(cache=cache, report=stopping)
    assert torch.equal(weights(train(cache=cache))[0], weights(whole)[0])
    monkeypatch.setattr(module, "Loop", None)
    assert torch.equal(weights(train(cache=cache))[0], weights(whole)[0])


def test_models_are_told_apart_without_a_key(tmp_path):
    other = tiny_model()
    other.get_output_embeddings().weight.data.mul_(0.5)
    found = [weights(train(decoder=decoder_of(model), cache=Cache(tmp_path)))[0] for model in (tiny_model(), other)]
    assert not torch.equal(*found)


def test_what_isnt_improved_stays_as_it_was_fitted():
    patches = [(SITE, ChannelScale(torch.full((1,), 1.25)))]
    found = train(replace(TRAINING, learning_rate=30.0, max_grad_norm=None), patches=patches)
    assert found.best_step == 0
    assert torch.equal(found.edit.operators[0].module.scale, torch.tensor([1.25]))


def test_steps_that_overflow_are_told(caplog, monkeypatch):
    scale = torch.amp.GradScaler.scale
    monkeypatch.setattr("torch.amp.GradScaler.scale", lambda self, loss: scale(self, loss) * math.inf)
    train(decoder=decoder_of(tiny_model().half()))
    assert "10 of 10 steps were skipped because gradients overflowed" in caplog.text


def test_a_size_without_hadamard_is_rejected():
    odd = tiny_model(hidden_size=42, num_attention_heads=3, num_key_value_heads=3, head_dim=14)
    with pytest.raises(ConfigError, match=r"size, 42.*basis=channel"):
        replace(TRAINING, patch_form="diagonal").check(decoder_of(odd))


def test_the_dense_model_doesnt_change():
    model = tiny_model().requires_grad_(True)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    train(decoder=decoder_of(model))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_number_of_tokens_says_how_long():
    found = train(replace(TRAINING, tokens=700))  # 20 sequences of 12 tokens are an epoch of 10 steps
    assert found.num_steps == math.ceil(700 / 24) == 30
    assert found.num_tokens == 30 * 24
    assert found.history[-2]["learning_rate"] < 0.06 * TRAINING.learning_rate
    whole = train(replace(TRAINING, epochs=3))
    assert torch.equal(weights(found)[0], weights(whole)[0])


def test_a_time_says_how_long_and_the_rest_is_exact(tmp_path, monkeypatch):
    times = iter([1.0, 0.25, 1.0, 1.0, 0.25])  # of validations and steps, in three trainings
    monkeypatch.setattr("linearpatch.distillation.loop.seconds", lambda work, times_=1: (work(), next(times))[1])
    training = replace(TRAINING, minutes=0.1)  # 6 s, of which three validations take one each
    whole = train(training)
    assert whole.num_steps == 12
    same = train(replace(TRAINING, tokens=12 * 24))
    assert torch.equal(weights(same)[0], weights(whole)[0])

    def stopping(point):
        if point["step"] == 3 and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match="after step 3 of 12"):
        train(training, cache=Cache(tmp_path), report=stopping)
    monkeypatch.setattr("linearpatch.distillation.loop.seconds", None)  # nothing is timed again
    again = train(training, cache=Cache(tmp_path))
    assert torch.equal(weights(again)[0], weights(whole)[0])


@pytest.mark.parametrize("settings", [{"tokens": 5, "minutes": 1.0}, {"tokens": 5, "epochs": 2}])
def test_two_answers_to_how_long_are_rejected(settings):
    with pytest.raises(ConfigError, match=r"distill.tokens=5.*both say how long to train"):
        replace(TRAINING, **settings)
