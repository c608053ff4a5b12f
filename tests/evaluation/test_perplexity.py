"""Perplexity in chunks against the plain formula on full logits."""

import math

import pytest
import torch
from conftest import FakeCorpus, measurements_of, tiny_model

from linearpatch.data.reader import Reader
from linearpatch.evaluation.evaluation import Metric, Subject
from linearpatch.evaluation.perplexity import Perplexity, window_losses
from linearpatch.models import loss as loss_module
from linearpatch.models.decoder import decoder_of
from linearpatch.models.random import byte_tokenizer

IDS = torch.randint(3, 300, (5, 17), generator=torch.Generator().manual_seed(4))


def plain_losses(model, ids):
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.double()
    return torch.stack(
        [torch.nn.functional.cross_entropy(row[:-1], targets[1:]) for row, targets in zip(logits, ids, strict=True)]
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "opt", "bloom"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("budget", [1, 2**24])
def test_chunks_give_the_loss_of_full_logits(family, batch_size, budget, monkeypatch):
    monkeypatch.setitem(loss_module.LOGIT_BYTES, "cpu", budget)
    model = tiny_model(family)
    found = window_losses(decoder_of(model), IDS, batch_size=batch_size)
    assert torch.allclose(found, plain_losses(model, IDS), rtol=1e-5)


def test_no_more_logits_exist_than_the_budget_allows(monkeypatch, decoder):
    monkeypatch.setitem(loss_module.LOGIT_BYTES, "cpu", 4 * 300 * 20)
    sizes = []
    handle = decoder.head.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
    window_losses(decoder, torch.randint(3, 300, (2, 90)), batch_size=2)
    handle.remove()
    assert max(sizes) <= 300 * 20


def test_the_metric_is_the_protocols_formula(decoder):
    tokenizer = byte_tokenizer()
    (measurement,) = measurements_of(Perplexity(seq_len=100), "ppl", Reader(FakeCorpus(), "evaluation"), tokenizer)
    (measured,) = measurement.run([Subject("dense", decoder, decoder)], lambda count: None)
    metric = measured.metrics["ppl/fake"]

    ids = torch.tensor(tokenizer(FakeCorpus().documents()[0]).input_ids)
    windows = ids[: len(ids) // 100 * 100].view(-1, 100)
    losses = plain_losses(decoder.model, windows)
    assert metric.value == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    expected = math.exp(losses.mean()) * losses.std().item() / math.sqrt(len(losses))
    assert metric.stderr == pytest.approx(expected, rel=1e-3)
    assert metric.n == len(windows) * 99
    assert measured.arrays["ppl/fake/windows"].numpy() == pytest.approx(losses.numpy(), rel=1e-5)
    assert "windows of 100 tokens" in metric.protocol


def test_a_value_that_is_not_finite_becomes_null_with_the_reason():
    metric = Metric.of(float("inf"), float("nan"), 3, "p", "h")
    assert metric.value is None
    assert metric.reason == "the value is inf"


def test_the_version_is_part_of_the_measurements_identity_and_the_batch_size_is_not(monkeypatch):
    reader = Reader(FakeCorpus(), "evaluation")

    def key(**settings):
        (measurement,) = measurements_of(Perplexity(**settings), "ppl", reader, byte_tokenizer())
        return measurement.key

    first = key(seq_len=50)
    assert key(seq_len=50, batch_size=2) == first
    assert key(seq_len=60) != first
    monkeypatch.setattr(Perplexity, "version", 99)
    assert key(seq_len=50) != first
