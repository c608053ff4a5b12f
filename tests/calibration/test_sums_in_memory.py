"""Sums of products that don't fit into memory together: their bytes, and the same numbers from several passes."""

import pytest
import torch

from linearpatch.calibration import sums_in_memory
from linearpatch.calibration.canonical import CanonicalBound
from linearpatch.calibration.gram import Gram, MlpGram, NormedGram, RefitGram
from linearpatch.calibration.listening import Listeners
from linearpatch.calibration.statistics import Magnitude, WindowCosine
from linearpatch.calibration.sums_in_memory import parts_that_fit
from linearpatch.calibration.units import UnitGram, UnitScores
from linearpatch.calibration.workspace import Workspace
from linearpatch.models.gated_units import GatedUnits

UNITS = GatedUnits("some", torch.full((32, 5), 0.1), torch.full((32, 5), 0.2))
STATISTICS = [
    Gram(1, 3),
    Gram(2, 4, bias=True),
    MlpGram(1, 3),
    RefitGram(1, 3),
    RefitGram(1.5, 3, "capped"),  # before a removed MLP: the attention's output projection
    NormedGram(2, 4),
    NormedGram(2, 4, change_hash="0", change=torch.zeros(48, 32, dtype=torch.float64)),
    UnitGram(1, 3, units_name="some", units=UNITS),
    UnitScores(1, 3, units_name="some", units=UNITS),
    CanonicalBound(1, 3),
]


@pytest.fixture
def passes(monkeypatch):
    """Each pass over the model, as the statistics that listened to it."""
    seen = []
    walk = Workspace._walk

    def counted(workspace, listeners, description):
        seen.append(listeners.statistics)
        walk(workspace, listeners, description)

    monkeypatch.setattr(Workspace, "_walk", counted)
    return seen


@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
def test_bytes_are_those_of_the_matrices_that_are_summed(workspace, statistic):
    listeners = Listeners([statistic], workspace.num_layers)
    workspace._walk(listeners, "test")
    (accumulator,) = listeners._accumulators
    assert statistic.sum_bytes(workspace.decoder) == sum(x.nbytes for x in accumulator.sums.values() if x.dim() == 2)


def test_several_passes_give_what_one_does(workspace, decoder, blocks, passes, monkeypatch):
    wanted = [*STATISTICS, WindowCosine(1), Magnitude()]
    together = workspace.collect(*wanted)
    assert len(passes) == 1
    monkeypatch.setattr(sums_in_memory, "MOST_BYTES", 2 * Gram(1, 3).sum_bytes(decoder))
    apart = Workspace(decoder, blocks).collect(*wanted)
    assert len(passes) > 5
    for one, other in zip(together, apart, strict=True):
        assert one.keys() == other.keys()
        for name, sums in one.items():  # equal but for the order in which fp32 sums add up
            torch.testing.assert_close(other[name], sums, rtol=1e-6, atol=1e-6)


def test_parts_are_as_large_as_fits(monkeypatch):
    monkeypatch.setattr(sums_in_memory, "MOST_BYTES", 10)
    parts = parts_that_fit([4, 5, 0, 2, 30, 0, 1, 9, 1], lambda size: size, torch.device("cpu"))
    assert parts == [[4, 5, 0], [2], [30, 0], [1, 9], [1]]


def test_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(sums_in_memory, "free_memory", lambda device: 1000)
    assert sums_in_memory.room_for_sums(torch.device("cpu")) == 500
    monkeypatch.setattr(sums_in_memory, "free_memory", lambda device: None)
    assert sums_in_memory.room_for_sums(torch.device("mps")) == sums_in_memory.MOST_BYTES
