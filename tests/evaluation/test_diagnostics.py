"""Diagnostics against direct computations on recorded streams."""

from itertools import pairwise

import pytest
import torch
from conftest import FakeCorpus, measurements_of, tiny_model
from edits import edit_of, on_stream, view_of

from linearpatch.data.reader import Reader
from linearpatch.evaluation.diagnostics import Diagnostics
from linearpatch.evaluation.evaluation import Subject
from linearpatch.models.decoder import decoder_of
from linearpatch.models.modeling_linearpatch import ChannelScale
from linearpatch.models.passes import record
from linearpatch.models.random import byte_tokenizer


@pytest.fixture(scope="module")
def measured():
    dense = decoder_of(tiny_model())
    scale = torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.5
    patch = (on_stream(2, 4, reader=4), ChannelScale(scale))
    pruned, patched = (decoder_of(view_of(dense, [2, 3], patches)) for patches in ([], [patch]))
    subjects = [
        Subject("dense", dense, dense),
        Subject("pruned", pruned, dense, edit_of((3, 2))),
        Subject("patched", patched, dense, edit_of((3, 2))),
    ]
    settings = Diagnostics(num_blocks=2, seq_len=40)
    (measurement,) = measurements_of(settings, "diagnostics", Reader(FakeCorpus(), "evaluation"), byte_tokenizer())
    assert measurement.together
    alone = measurement.run(subjects[1:], lambda count: None)
    found = measurement.run(subjects, lambda count: None)
    assert [one.metrics for one in alone] == [one.metrics for one in found[1:]]  # dense need not be asked for
    ids = torch.tensor(byte_tokenizer()(FakeCorpus().documents()[0]).input_ids)[:80].view(2, 40)
    streams = [
        [s.double().flatten(0, 1) for s in record(subject.decoder, ids).streams.values()] for subject in subjects
    ]
    return {s.stage: (one, own) for s, one, own in zip(subjects, found, streams, strict=True)}


@pytest.mark.parametrize("stage", ["dense", "pruned", "patched"])
def test_profiles_are_those_of_the_streams(measured, stage):
    (found, own), (_, dense) = measured[stage], measured["dense"]
    kept = [0, 1, 2, 3, 4, 5, 6] if stage == "dense" else [0, 1, 4, 5, 6]
    assert found.arrays["streams"].tolist() == kept
    expected = [dense[index] for index in kept]
    cosine = torch.nn.functional.cosine_similarity
    for index, (x, y) in enumerate(zip(own, expected, strict=True)):
        assert found.arrays["magnitude"][index].item() == pytest.approx(x.abs().mean().item(), rel=1e-5)
        assert found.arrays["magnitude_ratio"][index].item() == pytest.approx((x.abs().mean() / y.abs().mean()).item())
        assert found.arrays["cosine_to_dense"][index].item() == pytest.approx(cosine(x, y).mean().item(), rel=1e-5)
        error = ((x - y).square().sum(-1) / y.square().sum(-1)).mean()
        assert found.arrays["error_to_dense"][index].item() == pytest.approx(error.item(), rel=1e-5, abs=1e-9)
    for index, (x, y) in enumerate(pairwise(own)):
        assert found.arrays["cosine_to_next"][index].item() == pytest.approx(cosine(x, y).mean().item(), rel=1e-5)


def test_the_gap_is_told_before_and_after_the_patch(measured):
    dense = measured["dense"][1]
    for stage, (found, own) in measured.items():
        arrived = own[4 if stage == "dense" else 2]
        expected = arrived.abs().mean(dim=0)
        assert torch.allclose(found.arrays["interface_2_4/channel_magnitude"].double(), expected, rtol=1e-4)
        ratio = found.metrics["diagnostics/interface_2_4/magnitude_ratio"].value
        assert ratio == pytest.approx((arrived.abs().mean() / dense[4].abs().mean()).item(), rel=1e-5)
    pruned, patched = (measured[stage][0].arrays["interface_2_4/channel_magnitude"] for stage in ("pruned", "patched"))
    assert not torch.allclose(pruned, patched)


def test_dense_is_where_it_should_be(measured):
    metrics = measured["dense"][0].metrics
    assert metrics["diagnostics/interface_2_4/magnitude_ratio"].value == pytest.approx(1)
    assert metrics["diagnostics/interface_2_4/error_to_dense"].value == 0
    assert metrics["diagnostics/final_cosine_to_dense"].value == pytest.approx(1)
