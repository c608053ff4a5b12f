"""How many sums of products exist at a time: what doesn't fit together is summed in several passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from linearpatch.runtime.memory import free_memory

Item = TypeVar("Item")

MOST_BYTES = 8 * 2**30  # of sums that exist at a time; more would seldom save a pass
SHARE_OF_FREE = 0.5  # of the memory that is free: hidden states and the temporaries of a batch need some, too


def room_for_sums(device: torch.device) -> int:
    """Bytes that sums may take on a device."""
    free = free_memory(device)
    return MOST_BYTES if free is None else min(MOST_BYTES, int(SHARE_OF_FREE * free))


def parts_that_fit(items: Sequence[Item], num_bytes: Callable[[Item], int], device: torch.device) -> list[list[Item]]:
    """Split some items in order, so that the sums of each part fit into memory together; an item alone always does.

    Args:
        items: What is summed, such as statistics.
        num_bytes: Of the sums of one.
        device: Where they are.
    """
    room = room_for_sums(device)
    parts: list[list[Item]] = []
    taken = 0
    for item in items:
        size = num_bytes(item)
        if not parts or (taken + size > room and size > 0):
            parts.append([])
            taken = 0
        parts[-1].append(item)
        taken += size
    return parts
