"""What the student writes and the dense model scores, weights by entropy, and a learning rate that is searched."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from edits import edit_of
from test_loop import PATCH, REMOVED, SITE, TEXT, TRAINING, VALIDATION, train, validation_losses, weights
from test_losses import IDS, student_of

from linearpatch.distillation import range_test
from linearpatch.distillation.full_kl import FullKL
from linearpatch.distillation.loop import Loop
from linearpatch.distillation.on_policy import PROMPT
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.patch_forms import FullPatch, at_rest
from linearpatch.distillation.sources import Online
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import decoder_of
from linearpatch.models.runner import Runner
from linearpatch.models.sampling import Sampling, draws_of
from linearpatch.runtime.signals import Terminated
from linearpatch.storage.cache import Cache

ON_POLICY = replace(TRAINING, batch_size=1, accumulation=4, on_policy=0.25)


def loop_of(training):
    decoder = decoder_of(tiny_model())
    patch = FullPatch(PATCH[0][1].weight.detach().T.clone(), None, around_start=False)
    student = Runner(decoder, edit_of(REMOVED, [(SITE, patch)]))
    ids = torch.cat([TEXT.ids, VALIDATION.ids])
    return Loop(training, student, Online(training, student, ids), len(VALIDATION.ids))


@pytest.mark.parametrize(("share", "counts"), [(0.25, [1, 1, 1, 1]), (0.125, [0, 1, 0, 1]), (1.0, [4, 4, 4, 4])])
def test_the_share_of_each_step_is_written(share, counts):
    loop = loop_of(replace(ON_POLICY, on_policy=share))
    assert [len(loop.on_policy.rows(step)) for step in range(4)] == counts


def test_the_student_continues_the_first_half_by_its_own_probabilities():
    loop = loop_of(ON_POLICY)
    loop.on_policy.prepare(0)
    (row,) = loop.on_policy.rows(0)
    text, kept = loop.on_policy.written[0, row], int(PROMPT * 12)
    assert torch.equal(text[:kept], TEXT.ids[row, :kept])
    view = at_rest(loop.student.edit).view(loop.student.decoder)
    draws = draws_of(f"on-policy 0 0 {row}", 12 - kept)
    for position in range(kept, 12):
        logits = view(input_ids=text[None, :position], use_cache=False).logits[:, -1]
        assert Sampling().choose(logits, draws[None, position - kept]) == text[position]


def test_the_dense_model_scores_what_was_written():
    loop = loop_of(ON_POLICY)
    loop.on_policy.prepare(0)
    rows = loop.rows(0)
    text = loop.on_policy.sequences(0, rows)
    assert not torch.equal(text, loop.source.ids[list(rows)])
    assert torch.equal(text[1:], loop.source.ids[list(rows[1:])])
    expected = sum(
        loop.training.loss(loop.student, Online(loop.training, loop.student, one[None]).lesson([0])) for one in text
    )
    assert float(loop._gradients()) == pytest.approx(expected.item() / 4, rel=1e-5)


def test_it_is_renewed_as_the_student_learns():
    loop = loop_of(replace(ON_POLICY, on_policy=1.0, learning_rate=3e-2))
    assert loop.on_policy.period == 4
    loop.advance()
    first = dict(loop.on_policy.written)
    for _ in range(4):
        loop.advance()
    assert {step for step, _ in first} == {0, 1, 2, 3}
    assert {step for step, _ in loop.on_policy.written} == {4, 5, 6, 7}


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_training_that_was_stopped_ends_as_if_it_hadnt(tmp_path, stop_after):
    training = replace(ON_POLICY, epochs=2, on_policy=0.5)
    whole = train(training)

    def stopping(point):
        if point["step"] == stop_after and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        train(training, cache=Cache(tmp_path), report=stopping)
    again = train(training, cache=Cache(tmp_path))
    assert torch.equal(weights(again)[0], weights(whole)[0])
    assert min(validation_losses(whole)) < validation_losses(whole)[0]
    assert again.seconds > 0


@pytest.mark.parametrize("cls", [OutputKL, FullKL])
def test_tokens_count_by_the_teachers_entropy(cls):
    decoder = decoder_of(tiny_model().double())
    training = cls(token_weighting="entropy", **({"top_k": 20} if cls is OutputKL else {}))
    student, _ = student_of(decoder, (2, 3))
    found = training.loss(student, Online(training, student, IDS).lesson([0, 1]))
    view = at_rest(student.edit).view(decoder)
    teacher, logits = (model(input_ids=IDS, use_cache=False).logits for model in (decoder.model, view))
    if cls is OutputKL:
        likeliest = teacher.topk(20, dim=-1)
        teacher, logits = likeliest.values, logits.gather(-1, likeliest.indices)
    p = teacher.softmax(dim=-1)
    if cls is OutputKL:
        p = p.half().double() / p.half().double().sum(dim=-1, keepdim=True)
    entropies = -(p * p.log()).sum(dim=-1)
    kl = (p * (p.log() - logits.log_softmax(dim=-1))).sum(dim=-1)
    assert found.item() == pytest.approx(((entropies / entropies.mean()) * kl).mean().item(), rel=1e-4)


@pytest.mark.slow
def test_the_learning_rate_is_the_one_that_gains_most_in_a_few_steps():
    found = train(replace(TRAINING, learning_rate="auto"))
    alone = train(replace(TRAINING, learning_rate=found.learning_rate))
    assert torch.equal(weights(found)[0], weights(alone)[0])  # the trials leave nothing behind
    losses = {}
    for rate in range_test.RATES:
        loop = loop_of(replace(TRAINING, learning_rate=rate, final_learning_rate=1.0))
        for _ in range(range_test.STEPS):
            loop.advance()
        losses[rate] = loop.validation.loss()
    assert found.learning_rate == min(losses, key=losses.get)


def test_a_rate_that_was_found_isnt_searched_again(tmp_path, monkeypatch):
    training = replace(TRAINING, learning_rate="auto")

    def stopping(point):
        if point["step"] == 4 and "loss" in point:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        train(training, cache=Cache(tmp_path), report=stopping)
    monkeypatch.setattr("linearpatch.distillation.distill.best_rate", None)
    again = train(training, cache=Cache(tmp_path))
    assert again.learning_rate in range_test.RATES
    assert torch.equal(weights(again)[0], weights(train(replace(training, learning_rate=again.learning_rate)))[0])


def test_settings_that_make_no_sense_are_rejected():
    with pytest.raises(ConfigError, match=r"distill.on_policy is 1.5"):
        replace(TRAINING, on_policy=1.5)
    with pytest.raises(ConfigError, match=r"distill.learning_rate is 'best'. Allowed: auto"):
        replace(TRAINING, learning_rate="best")
    with pytest.raises(ConfigError, match=r"distill.token_weighting is 'loss'"):
        replace(TRAINING, token_weighting="loss")
