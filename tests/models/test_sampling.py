"""Sampling: choices follow the distribution, belong to sequences, and leave nothing of padding."""

import pytest
import torch
from conftest import tiny_model
from transformers import GenerationConfig

from linearpatch.models.decoder import decoder_of
from linearpatch.models.sampling import Sampling, cache_bytes, continuations, draws_of, rows_that_fit

GREEDY = Sampling(temperature=0)
UNIFORM = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]


def draws(*names, count=12):
    return torch.stack([draws_of(name, count) for name in names])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.9)])
def test_choices_follow_the_distribution_directly_computed(temperature, top_p, monkeypatch):
    monkeypatch.setattr("linearpatch.models.sampling.FIRST_CANDIDATES", 3)  # both with few candidates and with all
    logits = torch.randn(11, generator=torch.Generator().manual_seed(0)) * 2
    expected = (logits.double() / temperature).softmax(0)
    kept, total = set(), 0.0
    for token in expected.argsort(descending=True).tolist():  # the likeliest tokens that together reach top_p
        if total >= top_p:
            break
        kept.add(token)
        total += expected[token].item()
    expected[[token for token in range(11) if token not in kept]] = 0
    chosen = Sampling(temperature, top_p).choose(logits.expand(len(UNIFORM), -1), UNIFORM)
    shares = torch.bincount(chosen, minlength=11) / len(UNIFORM)
    assert torch.allclose(shares.double(), expected / expected.sum(), atol=2e-4)


def test_greedy_continuations_are_those_of_generate():
    model = tiny_model()
    prompts = torch.tensor([[1, 5, 9], [1, 7, 8]])
    expected = model.generate(prompts, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 3:]
    found = continuations(decoder_of(model), prompts.tolist(), draws("a", "b"), GREEDY, num_tokens=12)
    assert found == expected.tolist()


def test_a_sequence_does_not_depend_on_its_batch():
    decoder = decoder_of(tiny_model())
    prompts = [[1, 5, 9], [1, 7], [4, 4, 4, 4, 4]]  # of several lengths: the shorter ones are padded
    together = continuations(decoder, prompts, draws("a", "b", "c"), Sampling(), num_tokens=12)
    for prompt, name, expected in zip(prompts, "abc", together, strict=True):
        assert continuations(decoder, [prompt], draws(name), Sampling(), num_tokens=12) == [expected]
    assert len({tuple(each) for each in together}) == 3


def test_a_sequence_stops_before_its_end_and_leaves_no_padding():
    decoder = decoder_of(tiny_model())
    (free,) = continuations(decoder, [[1]], draws("a"), Sampling(), num_tokens=12)
    other = continuations(decoder, [[1]] * 2, draws("a", "b"), Sampling(), num_tokens=12, stop=[free[4]])
    assert other[0] == free[: free.index(free[4])]
    assert len(other[1]) == 12 or free[4] not in other[1]


def test_a_token_is_always_followed_by_the_one_that_starts_a_document():
    decoder = decoder_of(tiny_model())
    (free,) = continuations(decoder, [[1]], draws("a"), Sampling(), num_tokens=12)
    (forced,) = continuations(decoder, [[1]], draws("a"), Sampling(), num_tokens=12, start_after=(free[3], 1))
    assert forced[: free.index(free[3]) + 2] == [*free[: free.index(free[3]) + 1], 1]


def test_settings_that_come_with_the_model_change_nothing():
    model = tiny_model()
    plain = continuations(decoder_of(model), [[1, 5]], draws("a"), Sampling(), num_tokens=12)
    own = GenerationConfig(repetition_penalty=5.0, top_k=1, temperature=0.1, do_sample=True, eos_token_id=plain[0][2])
    model.generation_config = own
    assert continuations(decoder_of(model), [[1, 5]], draws("a"), Sampling(), num_tokens=12) == plain
    assert model.generation_config is own


def test_only_tokens_of_the_vocabulary_are_chosen():
    (found,) = continuations(decoder_of(tiny_model()), [[1]], draws("a"), Sampling(3), num_tokens=12, vocabulary=40)
    assert max(found) < 40


@pytest.mark.parametrize(("family", "kept"), [("llama", 2), ("qwen3", 1), ("gpt_neox", None), ("bloom", None)])
def test_a_cache_is_as_large_as_expected(family, kept):
    decoder = decoder_of(tiny_model(family, num_key_value_heads=kept))
    cache = decoder.model(torch.ones(1, 7, dtype=torch.long)).past_key_values
    sizes = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    assert cache_bytes(decoder) * 7 == sum(sizes)


def test_as_many_sequences_as_memory_holds(monkeypatch):
    decoder = decoder_of(tiny_model())
    free = 2 * 5 * (1000 * cache_bytes(decoder) + 16 * decoder.vocab_size)
    for memory, rows in [(free, 5), (1, 1), (2**50, 64), (None, 64)]:
        monkeypatch.setattr("linearpatch.models.sampling.free_memory", lambda device, memory=memory: memory)
        assert rows_that_fit(decoder, 1000) == rows
