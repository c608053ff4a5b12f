"""Scores with shared beginnings against one plain forward pass for each request."""

import random

import pytest
import torch
from conftest import FAMILIES, tiny_model

from linearpatch.errors import ModelError
from linearpatch.evaluation.harness.scoring import Row, group, score
from linearpatch.models import loss as loss_module
from linearpatch.models.decoder import decoder_of
from linearpatch.runtime.memory import BatchSize

GENERATOR = random.Random(0)
EXAMPLES = [GENERATOR.randrange(3, 300) for _ in range(20)]


def words(count):
    return [GENERATOR.randrange(3, 300) for _ in range(count)]


def requests():
    """Few-shot questions with letters as answers, questions with sentences, one answer in several sentences."""
    found = []
    for question in range(6):
        context = (EXAMPLES if question < 3 else []) + words(3 + question)
        found += [(context, words(1 if question % 2 == 0 else 1 + choice)) for choice in range(4)]
    for _ in range(3):
        beginning = words(6)
        found += [(beginning + words(1), [7, 8, 9]) for _ in range(2)]
    return [*found, ([1], [5]), ([1], [5, 6, 7]), ([9], [5])]


REQUESTS = requests()


def plain(model, context, continuation):
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        logprobs = (
            model(input_ids=ids[:, :-1], use_cache=False).logits[0].double().log_softmax(-1)[-len(continuation) :]
        )
    each = [row[token].item() for row, token in zip(logprobs, continuation, strict=True)]
    return sum(each), logprobs.argmax(-1).tolist() == continuation


@pytest.mark.parametrize(
    ("family", "batch_size"), [*((family, 3) for family in FAMILIES), *(("llama", size) for size in (1, 8, 100))]
)
def test_shared_beginnings_change_nothing(family, batch_size):
    model = tiny_model(family)
    expected = [plain(model, *request) for request in REQUESTS]
    for share in (True, False):
        found = score(decoder_of(model), REQUESTS, batch_size=BatchSize(batch_size, "cpu"), max_length=99, share=share)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_long_sequences_lose_their_first_tokens(decoder):
    found = score(decoder, [(words(30), [5, 6])] * 2, batch_size=BatchSize(2, "cpu"), max_length=10)
    context = REQUESTS[0][0]
    (value, _), expected = (
        score(decoder, [(context, [5, 6])], batch_size=BatchSize(1, "cpu"), max_length=10)[0],
        plain(decoder.model, context[-9:], [5, 6]),
    )
    assert value == pytest.approx(expected[0], rel=1e-4)
    assert found[0] == found[1]


def count_tokens(decoder, share):
    read = []
    handle = decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    score(decoder, REQUESTS[:12], batch_size=BatchSize(4, "cpu"), max_length=99, share=share)
    handle.remove()
    return sum(read)


def test_a_few_shot_prefix_is_read_once(decoder):
    assert count_tokens(decoder, share=True) < 0.5 * count_tokens(decoder, share=False)


def test_continuations_of_one_token_are_one_row(decoder):
    rows = []
    handle = decoder.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    score(decoder, [([5, 6, 7], [answer]) for answer in range(3, 7)], batch_size=BatchSize(8, "cpu"), max_length=99)
    handle.remove()
    assert rows == [1]


def test_groups_spare_the_most():
    def row(*tokens):
        return Row(tokens, (0,), len(tokens) - 1)

    question = [row(1, 2, 3, 4, 5, choice) for choice in range(4)]
    other = [row(1, 2, 9, 9, 9, choice) for choice in range(4)]
    alone = [row(1, 7, 7, 7)]
    found = {each.rows: each.common for each in group([*alone, *other, *question])}
    assert found == {tuple(question): 5, tuple(other): 5, tuple(alone): 3}

    few_shot = [row(*range(100), question, 5) for question in range(200, 210)]
    (only,) = group(few_shot)
    assert (only.common, len(only.rows)) == (100, 10)
    assert group([]) == []


def test_no_more_logits_exist_than_the_budget_allows(monkeypatch, decoder):
    monkeypatch.setitem(loss_module.LOGIT_BYTES, "cpu", 4 * 300 * 20)
    sizes = []
    handle = decoder.head.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    score(decoder, REQUESTS, batch_size=BatchSize(100, "cpu"), max_length=99)
    handle.remove()
    assert max(sizes) <= 300 * 20


class Forgetful:
    """Runs out of memory whenever more than some rows come at once."""

    def __init__(self, model, most):
        self.model, self.most, self.seen = model, most, []
        self.handle = model.base_model.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, _, args, kwargs):
        rows = len(kwargs["input_ids"])
        self.seen.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("share", [True, False])
def test_batches_halve_when_memory_runs_out_and_stay_small(decoder, share):
    expected = score(decoder, REQUESTS, batch_size=BatchSize(2, "cpu"), max_length=99, share=False)
    memory = Forgetful(decoder.model, most=3)
    batch_size = BatchSize("auto", "cpu")
    found = score(decoder, REQUESTS, batch_size=batch_size, max_length=99, share=share)
    memory.handle.remove()
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert batch_size.rows <= 3 < max(memory.seen)


@pytest.mark.parametrize(("setting", "most", "advice"), [(8, 3, "batch_size=auto"), ("auto", 0, "max_length")])
def test_memory_that_does_not_suffice_is_told(decoder, setting, most, advice):
    memory = Forgetful(decoder.model, most)
    with pytest.raises(ModelError, match=advice):
        score(decoder, REQUESTS, batch_size=BatchSize(setting, "cpu"), max_length=99, share=False)
    memory.handle.remove()


def test_other_errors_pass(decoder):
    def fail(*_):
        raise RuntimeError("something else")

    handle = decoder.model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        score(decoder, REQUESTS, batch_size=BatchSize("auto", "cpu"), max_length=99)
    handle.remove()
