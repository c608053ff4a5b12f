"""What a device has room for."""

from types import SimpleNamespace

import pytest
import torch

from linearpatch.runtime import memory
from linearpatch.runtime.memory import has_room

TOTAL = 1000


@pytest.mark.parametrize(
    ("free", "size", "fits"), [(500, 300, True), (500, 301, False), (1000, 800, True), (100, 0, False)]
)
def test_what_is_kept_on_a_gpu_leaves_a_share_of_its_memory_free(free, size, fits, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=TOTAL))
    assert has_room(torch.device("cuda"), size, leaving=0.2) == fits


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_where_memory_isnt_known_there_is_room(device):
    assert has_room(torch.device(device), 2**60, leaving=0.2)
