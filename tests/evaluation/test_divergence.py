"""The divergence from the dense model against a direct computation over whole logits."""

import pytest
import torch
from conftest import FakeCorpus, measurements_of, tiny_model
from edits import edit_of, view_of

from linearpatch.data.reader import Reader
from linearpatch.evaluation import divergence as module
from linearpatch.evaluation.divergence import Divergence, divergence_from_dense, quantile
from linearpatch.evaluation.evaluation import Subject
from linearpatch.models.decoder import decoder_of
from linearpatch.models.random import byte_tokenizer


@pytest.fixture(scope="module")
def models():
    dense = decoder_of(tiny_model())
    return dense, decoder_of(view_of(dense, [2, 3], []))


@pytest.fixture
def ids():
    return torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(0))


def direct(dense, model, ids):
    """KL and agreement from logits in fp64 of all positions at once."""
    with torch.no_grad():
        expected, actual = (m.model(ids).logits.double() for m in (dense, model))
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), (expected.argmax(-1) == actual.argmax(-1)).double()


@pytest.mark.parametrize("rows", [2, 14, 10_000])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_equals_a_direct_computation(models, ids, rows, batch_size, monkeypatch):
    monkeypatch.setattr(module, "logit_rows", lambda *_: rows)
    steps = []
    kl, agrees = divergence_from_dense(*models, ids, batch_size=batch_size, on_step=steps.append)
    expected_kl, expected_agrees = direct(*models, ids)
    torch.testing.assert_close(kl.double(), expected_kl, atol=1e-5, rtol=1e-4)
    assert torch.equal(agrees.double(), expected_agrees)
    assert sum(steps) == len(ids)


def test_a_model_does_not_diverge_from_itself(models, ids):
    kl, agrees = divergence_from_dense(models[0], models[0], ids)
    assert kl.max() < 1e-5
    assert agrees.all()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_torch_s(share):
    values = torch.rand(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert quantile(values, share).item() == pytest.approx(values.flatten().quantile(share).item())


def test_the_metrics_are_those_of_the_positions(models):
    dense, pruned = models
    settings = Divergence(seq_len=40, num_blocks=3)
    (measurement,) = measurements_of(settings, "divergence", Reader(FakeCorpus(), "evaluation"), byte_tokenizer())
    subjects = [Subject("dense", dense, dense), Subject("pruned", pruned, dense, edit_of((2, 3)))]
    own, found = measurement.run(subjects, lambda count: None)
    ids = torch.tensor(byte_tokenizer()(FakeCorpus().documents()[0]).input_ids)[:120].view(3, 40)
    kl, agrees = direct(dense, pruned, ids)
    value = {name.removeprefix("divergence/fake/"): metric for name, metric in found.metrics.items()}
    assert value["kl"].value == pytest.approx(kl.mean().item(), rel=1e-4)
    assert value["kl"].stderr == pytest.approx((kl.mean(1).std() / 3**0.5).item(), rel=1e-3)
    assert value["kl_p90"].value == pytest.approx(kl.flatten().quantile(0.9).item(), rel=1e-3)
    assert value["agreement"].value == pytest.approx(agrees.mean().item())
    assert value["agreement"].unit == "share"
    assert found.arrays["divergence/fake/kl/windows"].shape == (3,)
    assert own.metrics["divergence/fake/kl"].value == 0
    assert own.metrics["divergence/fake/agreement"].value == 1
