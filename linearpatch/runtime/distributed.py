"""Processes that work on one run together, as `accelerate launch` or `torchrun` starts them; usually there is one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from linearpatch.errors import ConfigError

Item = TypeVar("Item")


LAUNCHERS_SET = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole_number(variable: str, *, low: int) -> int | None:
    """The number that an environment variable holds; None where it isn't set.

    Raises:
        ConfigError: it holds something else.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not low <= int(text[:20]) < 2**31:
        raise ConfigError(
            f"The environment variable {variable} is {text[:40]!r}. Allowed: a whole number of at least {low}, as a "
            "launcher of several processes sets it. Unset it to work with one process."
        )
    return int(text)


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
        if (count := whole_number("WORLD_SIZE", low=1) or 1) == 1:
            return cls()
        missing = [name for name in LAUNCHERS_SET if name not in os.environ]
        if missing or (whole_number("RANK", low=0) or 0) >= count:
            wrong = f"{', '.join(missing)} isn't set" if missing else f"RANK is {os.environ['RANK']}"
            raise ConfigError(
                f"WORLD_SIZE is {count}, as a launcher of several processes sets it, but {wrong}. Start the processes "
                "with accelerate launch or torchrun, or unset WORLD_SIZE."
            )
        for name in ("LOCAL_RANK", "MASTER_PORT"):
            whole_number(name, low=0)
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
        numbers = torch.zeros(self.count, dtype=torch.float64)
        numbers[self.rank] = number  # 48 bits are exact in fp64
        return bool((self.sum(numbers) == number).all())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def leave(self) -> None:
        """Part from the others, at the end."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def broadcast(self, value: Any) -> Any:
        """A value of the first process, as every process gets it.

        Args:
            value: In the first process; what others give is of no account.
        """
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    @property
    def device(self) -> torch.device:
        """That on which this process computes."""
        from accelerate import PartialState

        device: torch.device = PartialState().device
        return device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.count == 1:
            return values
        from accelerate import PartialState
        from accelerate.utils import reduce

        total: Tensor = reduce(values.to(PartialState().device), reduction="sum")
        return total.to(values.device)
