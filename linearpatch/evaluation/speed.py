"""Speed and memory of the stages, measured in turn in one process, so that their ratios mean something."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from linearpatch.data.reader import Reader
from linearpatch.errors import require_range
from linearpatch.evaluation.evaluation import Evaluation, Measured, Measurement, Metric, Preparation, Subject
from linearpatch.memory import peak_growth
from linearpatch.models.decoder import Decoder
from linearpatch.registry import component

# What each timing is against, beside dense: patched against pruned is what the patch costs.
BASES = {"dense": (), "pruned": ("dense",), "patched": ("dense", "pruned")}


@component("eval", "speed")
@dataclass(frozen=True)
class Speed(Evaluation):
    """Prefill and decoding: time, tokens per second, peak memory, parameters and operations.

    Every round measures each stage once, in an order that rotates; the values are medians over the rounds, the ratios
    medians of the rounds' own ratios with their quartiles. The first pair of batch size and length gives the metrics
    `speed/…`, each further one `speed/BATCHxLENGTH/…`.

    Attributes:
        batch_sizes: Sequences at a time.
        lengths: Tokens of the prompt.
        new_tokens: Tokens decoded one by one after it.
        rounds: Measurements of each stage.
        warmup: Rounds before them that don't count.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [1])
    lengths: list[int] = field(default_factory=lambda: [512])
    new_tokens: int = 16
    rounds: int = 10
    warmup: int = 2

    def __post_init__(self) -> None:
        for what, values in (("batch_sizes", self.batch_sizes), ("lengths", self.lengths)):
            require_range(f"number of eval.speed.{what}", len(values), low=1)
            for value in values:
                require_range(f"eval.speed.{what}", value, low=1)
        require_range("eval.speed.new_tokens", self.new_tokens, low=1)
        require_range("eval.speed.rounds", self.rounds, low=2)
        require_range("eval.speed.warmup", self.warmup, low=0)

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """One measurement of all stages for each pair of batch size and length."""
        pairs = [(batch, length) for length in self.lengths for batch in self.batch_sizes]

        def measurements(tokenizer: Any) -> list[Measurement]:
            return [
                self._measurement(name if index == 0 else f"{name}/{batch}x{length}", batch, length)
                for index, (batch, length) in enumerate(pairs)
            ]

        return measurements

    def _measurement(self, name: str, batch: int, length: int) -> Measurement:
        def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
            return self._run(name, batch, length, subjects, on_step)

        key = {
            "version": self.version,
            "setting": [batch, length, self.new_tokens, self.rounds, self.warmup],
            "machine": _machine(),
        }
        return Measurement(name, key, self.rounds + self.warmup, run, together=True)

    def _run(
        self, name: str, batch: int, length: int, subjects: Sequence[Subject], on_step: Callable[[float], None]
    ) -> list[Measured]:
        decoders = [subject.decoder for subject in subjects]
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(decoders[0].vocab_size, (batch, length), generator=generator)
        times: list[list[tuple[float, float]]] = [[] for _ in subjects]
        for turn in range(self.warmup + self.rounds):
            for offset in range(len(subjects)):  # nobody is always first, or always after the same one
                index = (turn + offset) % len(subjects)
                found = _generate(decoders[index], prompt, self.new_tokens)
                if turn >= self.warmup:
                    times[index].append(found)
            on_step(1)
        protocol = (
            f"batch {batch}, {length} tokens, {self.new_tokens} decoded, {_machine()}; medians of rounds in which the "
            "stages take turns"
        )
        costs = [_costs(decoder, prompt) for decoder in decoders]
        stages = [subject.stage for subject in subjects]
        return [
            self._measured(name, protocol, stage, times[index], costs[index], dict(zip(stages, times, strict=True)))
            for index, stage in enumerate(stages)
        ]

    def _measured(
        self,
        name: str,
        protocol: str,
        stage: str,
        times: Sequence[tuple[float, float]],
        costs: Costs,
        all_times: dict[str, list[tuple[float, float]]],
    ) -> Measured:
        tokens = costs.batch * costs.length
        prefill, decode = zip(*times, strict=True)
        per_step = [seconds / self.new_tokens for seconds in decode]
        metrics: dict[str, Metric] = {}

        def add(metric: str, value: float | None, unit: str, **more: Any) -> None:
            reason = None if value is not None else "this system has no record of it"
            metrics[f"{name}/{metric}"] = Metric(
                value, more.pop("stderr", None), len(times), protocol, "", unit, "rounds", reason=reason, **more
            )

        headline = "/" not in name
        rates = [[tokens / t for t in prefill], [costs.batch / t for t in per_step]]
        seconds = {"prefill": 0, "decode": 1}
        for index, (phase, rate) in enumerate(zip(seconds, rates, strict=True)):
            versus = {
                base: ratio_of_rounds([t[index] for t in all_times[base]], [t[index] for t in times])
                for base in BASES[stage]
                if base in all_times
            }
            add(f"{phase}_tokens_per_s", statistics.median(rate), "1/s", stderr=_error(rate), headline=headline,
                versus=versus)  # fmt: skip
        add("prefill_s", statistics.median(prefill), "s", stderr=_error(prefill))
        add("decode_step_s", statistics.median(per_step), "s", stderr=_error(per_step))
        add("peak_memory_bytes", costs.memory, "bytes")
        add("num_parameters", costs.parameters, "count")
        add("prefill_flops", costs.flops, "FLOP")
        return Measured(metrics)


@dataclass(frozen=True)
class Costs:
    """What doesn't vary from round to round.

    Attributes:
        batch: Sequences.
        length: Tokens of each.
        parameters: Of the model.
        flops: Operations of reading the prompt (a multiplication and an addition are two).
        memory: Bytes of its parameters and of what reading the prompt needs at its peak; None where unknown.
    """

    batch: int
    length: int
    parameters: int
    flops: int
    memory: int | None


def ratio_of_rounds(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times faster than a base: the median of the rounds' own ratios, with their quartiles.

    Args:
        base: Seconds of the base, by round.
        other: Seconds of the other, by round.
    """
    ratios = sorted(first / second for first, second in zip(base, other, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": statistics.median(ratios), "low": low, "high": high}


@torch.inference_mode()
def _generate(decoder: Decoder, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to read a prompt, and to decode greedily after it."""
    ids = prompt.to(decoder.input_device)
    with _clock(ids.device) as prefill:
        output = decoder.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(dim=-1)
    with _clock(ids.device) as decode:
        for _ in range(new_tokens):
            output = decoder.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(dim=-1)
    return prefill(), decode()


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of one attention, from the shapes `[batch, heads, tokens, size]`; a causal mask spares none."""
    batch, heads, reading, size = query
    return 2 * batch * heads * reading * key[2] * (size + value[3])


# torch's own formulas leave out the CPU's attention, and older ones heads that share keys.
ATTENTION: dict[Any, Any] = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}"): _attention_flops
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
}


@torch.inference_mode()
def _costs(decoder: Decoder, prompt: Tensor) -> Costs:
    ids = prompt.to(decoder.input_device)

    def read() -> object:
        return decoder.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        read()
    growth = peak_growth(read, ids.device)
    parameters = list(decoder.model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return Costs(
        batch=len(prompt),
        length=prompt.shape[1],
        parameters=sum(parameter.numel() for parameter in parameters),
        flops=counter.get_total_flops(),
        memory=None if growth is None else weights + growth,
    )


@contextmanager
def _clock(device: torch.device) -> Iterator[Callable[[], float]]:
    """Time a block: by events of the device on a GPU, else by the system's clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield lambda: float(start.elapsed_time(end) / 1000)
        end.record()
        torch.cuda.synchronize(device)
        return
    started = time.perf_counter()
    elapsed = 0.0
    yield lambda: elapsed
    elapsed = time.perf_counter() - started


def _error(values: Sequence[float]) -> float:
    """Standard error of a median, as that of the mean of values that spread as much between their quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return float(1.2533 * (high - low) / 1.349 / len(values) ** 0.5)


def _machine() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU, {torch.get_num_threads()} threads"
