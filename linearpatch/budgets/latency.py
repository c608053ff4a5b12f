"""At most so many seconds to read a prompt, or to decode a token."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from linearpatch.budgets.amounts import SECONDS, amount
from linearpatch.budgets.budget import Limit, Limits
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, looked_in, require_choice, require_path, require_range
from linearpatch.evaluation.speed import generation_times, ratio_of_rounds
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.registry import component

PHASES = ("decode", "prefill")
WARMUP = 2  # rounds that don't count


@component("budget", "latency")
@dataclass(frozen=True)
class Latency(Limit):
    """The fewest layers without which the patched model is fast enough, measured on this machine or read from a table.

    On this machine each size takes turns with the dense model, and its time is the dense model's times the median ratio
    of the rounds: what slows down both doesn't count. The size that is found must be fast enough when it is measured
    again.

    Attributes:
        at_most: A share of the dense model's up to 1, or a time: `0.8`, `12ms`, `1.5s`.
        phase: `decode`, the time of one token, or `prefill`, that of reading the prompt.
        length: Tokens of the prompt.
        batch_size: Sequences at a time.
        new_tokens: Tokens decoded one by one in each round.
        rounds: Measurements of each model.
        table: A YAML file of times on another machine, by the number of removed layers: `{0: 12.5ms, 8: 9.1ms}`.
            Between two sizes times are interpolated. null: measure here.
    """

    version: ClassVar[int] = 2

    at_most: Any = 0.8
    phase: str = "decode"
    length: int = 512
    batch_size: int = 1
    new_tokens: int = 16
    rounds: int = 10
    table: str | None = None

    def __post_init__(self) -> None:
        amount("budget.at_most", self.at_most, SECONDS, bare=False)
        require_choice("budget.phase", self.phase, PHASES)
        require_range("budget.length", self.length, low=1)
        require_range("budget.batch_size", self.batch_size, low=1)
        require_range("budget.new_tokens", self.new_tokens, low=1)
        require_range("budget.rounds", self.rounds, low=2)
        if self.table is not None:
            read_table(self.table)

    @property
    def label(self) -> str:
        """Such as `latency12ms`."""
        return f"latency{self.at_most}"

    def limits(self, workspace: Workspace, sizes: Sequence[int]) -> Limits:
        """Measured in turns with the dense model, or read from the table."""
        dense = workspace.decoder
        number, is_share = amount("budget.at_most", self.at_most, SECONDS, bare=False)
        if self.table is not None:
            times = read_table(self.table)
            limit = number * times[0] if is_share else number
            return Limits(limit, times[0], "s", lambda edit: (interpolated(times, len(edit.removed)), None))
        whole = statistics.median(self._times([dense])[0])

        def measure(edit: Edit) -> tuple[float, float]:
            base, own = self._times([dense, edit.decoder(dense)])
            ratio = ratio_of_rounds(own, base)
            spread = (ratio["high"] - ratio["low"]) / 1.349
            return whole * ratio["ratio"], whole * 1.2533 * spread / self.rounds**0.5

        limit = number * whole if is_share else number
        return Limits(limit, whole, "s", measure, int((1 - limit / whole) * dense.num_layers), is_noisy=True)

    def _times(self, decoders: Sequence[Decoder]) -> list[list[float]]:
        """Seconds of each round, by model."""
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(decoders[0].vocab_size, (self.batch_size, self.length), generator=generator)
        times: list[list[float]] = [[] for _ in decoders]
        for turn in range(WARMUP + self.rounds):
            for offset in range(len(decoders)):  # nobody is always first
                index = (turn + offset) % len(decoders)
                prefill, decode = generation_times(decoders[index], prompt, self.new_tokens)
                if turn >= WARMUP:
                    times[index].append(prefill if self.phase == "prefill" else decode / self.new_tokens)
        return times


def read_table(path: str) -> dict[int, float]:
    """Seconds by the number of removed layers, from a YAML file.

    Raises:
        ConfigError: there is no such file, or it isn't such a table.
    """
    require_path("budget.table", path)
    file = Path(path).expanduser()
    form = "a mapping from numbers of removed layers to times, with 0 for the dense model: {0: 12.5ms, 8: 9.1ms}"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"budget.table={path} can't be read{looked_in(path)}. Name a YAML file: {form}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"budget.table={path} is no YAML. Allowed: {form}.") from error
    is_table = isinstance(content, Mapping) and all(isinstance(n, int) and n >= 0 for n in content)
    if not is_table or 0 not in content or len(content) < 2:
        raise ConfigError(f"budget.table={path} isn't such a table. Allowed: {form}.")
    times = {}
    for n in sorted(content):
        seconds, is_share = amount(f"budget.table={path}, entry {n}", content[n], SECONDS, bare=False)
        if is_share:
            raise ConfigError(f"budget.table={path}: {n} has {content[n]!r}, without a unit. Write {content[n]}ms.")
        times[n] = seconds
    return times


def interpolated(times: Mapping[int, float], n: int) -> float:
    """The time of a size between two of a table.

    >>> interpolated({0: 10.0, 4: 8.0}, 1)
    9.5

    Raises:
        ConfigError: it is beyond the table's last.
    """
    if n in times:
        return times[n]
    for low, high in pairwise(times):
        if low < n < high:
            return times[low] + (times[high] - times[low]) * (n - low) / (high - low)
    raise ConfigError(
        f"budget.table ends at {max(times)} removed layers, and {n} are needed. Add more, or raise budget.at_most."
    )
