"""Memory: what the process had at most, and batches that shrink where it doesn't suffice."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from linearpatch.errors import ConfigError, ModelError
from linearpatch.text import counted

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Rows of a batch to begin with: enough for matrix products at full speed, on each kind of device.
FIRST_BATCH = {"cpu": 16, "cuda": 64}


def high_water() -> int:
    """Bytes of memory that this process has had at most.

    Linux keeps two records. `getrusage`'s survives exec, so that a process started from a large one begins
    with that one's peak; the one in /proc belongs to this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory(device: torch.device) -> int:
    """Bytes that were allocated on a GPU at most, or that this process has had at most."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else high_water()


def peak_growth(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory grows at most while some work runs; None where this system keeps no record of it.

    On a GPU what is allocated there, on Linux the process' memory, whose record of the highest can be reset.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = high_water()
    work()
    return high_water() - before


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where that isn't known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def has_room(device: torch.device, size: int, *, leaving: float) -> bool:
    """Whether so many bytes more on a GPU leave a share of its memory free; True where its memory isn't known."""
    free = free_memory(device) if device.type == "cuda" else None
    if free is None:
        return True
    return free - size >= leaving * torch.cuda.get_device_properties(device).total_memory


class BatchSize:
    """How many rows one forward pass takes; `auto` begins large and halves when memory runs out.

    Args:
        setting: A number, or `auto`.
        device: Kind of device, such as `cuda`.
        owner: The section of the configuration that both settings are in, for errors.
        first: Rows that `auto` begins with; None takes `FIRST_BATCH`.
        length: Name of the setting that makes sequences shorter, for errors.
    """

    def __init__(
        self,
        setting: int | str,
        device: str,
        owner: str = "eval.tasks",
        *,
        first: int | None = None,
        length: str = "max_length",
    ) -> None:
        self.owner = owner
        self.length = length
        self.automatic = setting == "auto"
        first = first or FIRST_BATCH.get(device, FIRST_BATCH["cuda"])
        self.rows = first if setting == "auto" else int(setting)

    def over(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Work on consecutive batches; one that doesn't fit in memory is tried again in halves.

        Raises:
            ModelError: one item alone doesn't fit, or the batch size was given and doesn't.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.rows]
            fits, result = self.attempt(len(batch), partial(work, batch))
            if fits:
                assert result is not None
                yield batch, result
                start += len(batch)

    def attempt(self, count: int, work: Callable[[], Result]) -> tuple[bool, Result | None]:
        """Do some work on so many rows; False where memory didn't suffice, and half as many are to be tried.

        Raises:
            ModelError: one row alone doesn't fit, or the batch size was given and doesn't.
        """
        try:
            return True, work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(count, error)
            return False, None

    def _halve(self, tried: int, error: BaseException) -> None:
        if not self.automatic or tried == 1:
            advice = f"Use {self.owner}.batch_size=auto."
            if tried == 1:
                advice = f"Use a shorter {self.owner}.{self.length}, or a device with more memory."
            raise ModelError(f"Out of memory with {counted(tried, 'sequence')} at a time. {advice}") from error
        self.rows = tried // 2
        log.info("out of memory with %d sequences at a time; retrying with %d", tried, self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_batch_size(what: str, setting: object) -> None:
    """Raise `ConfigError` unless a setting is a positive whole number or `auto`."""
    if setting != "auto" and (not isinstance(setting, int) or isinstance(setting, bool) or setting < 1):
        raise ConfigError(f"{what} is {setting!r}. Allowed: auto, or a whole number from 1.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the CPU's, is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def with_half_batch(component: Any) -> Any:
    """A component with half its batch size, and more steps of accumulation where it has those."""
    size = getattr(component, "batch_size", None)
    if not isinstance(size, int) or size < 2:
        return component
    changes = {"batch_size": size // 2}
    if hasattr(component, "accumulation"):
        if size % 2:
            return component
        changes["accumulation"] = 2 * component.accumulation
    return replace(component, **changes)
