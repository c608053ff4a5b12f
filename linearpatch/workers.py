"""Processes that work on one run together, as `accelerate launch` or `torchrun` starts them; usually there is one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """The processes of a run and which of them this is.

    Attributes:
        rank: This process, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Workers:
        """Those that a launcher started; joins them. One process where none did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        # Processes may wait for hours: for the first one's evaluations, or for another run that computes the same.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is to write."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process' part of some items."""
        return items[self.rank :: self.count]

    def agree(self, value: str) -> bool:
        """Whether a text is the same in all processes."""
        if self.count == 1:
            return True
        number = int(hashlib.sha256(value.encode()).hexdigest()[:12], 16)
        mine = torch.zeros(self.count, dtype=torch.float64)
        mine[self.rank] = number  # 48 bits are exact in fp64
        return bool((self.sum(mine) == number).all())

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def leave(self) -> None:
        """Part from the others, at the end."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.count == 1:
            return values
        from accelerate import PartialState
        from accelerate.utils import reduce

        total: Tensor = reduce(values.to(PartialState().device), reduction="sum")
        return total.to(values.device)
