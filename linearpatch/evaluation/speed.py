"""Speed and memory of the stages, measured in turn in one process, so that their ratios mean something."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from linearpatch.data.reader import Reader
from linearpatch.errors import require_range
from linearpatch.evaluation.evaluation import (
    Evaluation,
    Measured,
    Measurement,
    Preparation,
    Subject,
)
from linearpatch.models.decoder import Decoder, cache_of, last_logits_only
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component
from linearpatch.results.metric import Metric
from linearpatch.results.stages import stages_before
from linearpatch.runtime.memory import peak_growth
from linearpatch.storage.cache import Cache


@component("eval", "speed")
@dataclass(frozen=True)
class Speed(Evaluation):
    """Prefill and decoding: time, tokens per second, peak memory, KV cache, parameters and operations.

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

    version: ClassVar[int] = 2

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

        def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
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
            "machine": [_machine(), platform.node()],
        }
        return Measurement(name, key, self.rounds + self.warmup, run, together=True)

    def _run(
        self, name: str, batch: int, length: int, subjects: Sequence[Subject], on_step: Callable[[float], None]
    ) -> list[Measured]:
        vocabulary = subjects[0].decoder.vocab_size
        prompt = torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
        times = {subject.stage: Times() for subject in subjects}
        for turn in range(self.warmup + self.rounds):
            for offset in range(len(subjects)):  # nobody is always first, or always after the same one
                subject = subjects[(turn + offset) % len(subjects)]
                prefill, decode = generation_times(subject.decoder, prompt, self.new_tokens)
                if turn >= self.warmup:
                    times[subject.stage].prefill.append(prefill)
                    times[subject.stage].decode.append(decode / self.new_tokens)
            on_step(1)
        protocol = (
            f"batch {batch}, {length} tokens, {self.new_tokens} decoded, {_machine()}; medians of rounds in which the "
            "stages take turns, ratios within rounds [quartiles]"
        )
        return [
            Measured(
                {
                    f"{name}/{metric}": replace(value, headline=value.headline and "/" not in name)
                    for metric, value in _metrics(subject, prompt, times, protocol).items()
                }
            )
            for subject in subjects
        ]


@dataclass(frozen=True)
class Times:
    """Seconds of each round: to read the prompt, and to decode a token."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def _metrics(subject: Subject, prompt: Tensor, times: Mapping[str, Times], protocol: str) -> dict[str, Metric]:
    own, costs = times[subject.stage], _costs(subject.decoder, prompt)
    bases = [base for base in stages_before(subject.stage) if base in times]
    rounds = len(own.prefill)

    def metric(value: float | None, unit: str, stderr: float | None = None, **more: Any) -> Metric:
        reason = None if value is not None else "this system keeps no record of it"
        return Metric(value, stderr, rounds, protocol, "", unit, "rounds", reason=reason, **more)

    def rate(tokens: int, phase: str) -> Metric:
        rates = [tokens / seconds for seconds in getattr(own, phase)]
        versus = {base: ratio_of_rounds(getattr(times[base], phase), getattr(own, phase)) for base in bases}
        return metric(statistics.median(rates), "1/s", _error(rates), headline=True, versus=versus)

    def duration(phase: str) -> Metric:
        seconds = getattr(own, phase)
        versus = {base: ratio_of_rounds(seconds, getattr(times[base], phase)) for base in bases}
        return metric(statistics.median(seconds), "s", _error(seconds), versus=versus)

    return {
        "prefill_tokens_per_s": rate(prompt.numel(), "prefill"),
        "decode_tokens_per_s": rate(len(prompt), "decode"),
        "prefill_s": duration("prefill"),
        "decode_step_s": duration("decode"),
        "peak_memory_bytes": metric(costs.memory, "bytes"),
        "num_parameters": metric(costs.parameters, "count"),
        "prefill_flops": metric(costs.flops, "FLOP"),
        "kv_cache_bytes_per_token": metric(costs.cache, "bytes/token"),
    }


@dataclass(frozen=True)
class Costs:
    """What doesn't vary from round to round.

    Attributes:
        parameters: Of the model.
        flops: Operations of reading the prompt (a multiplication and an addition are two).
        memory: Bytes of its parameters and of what reading the prompt needs at its peak; None where unknown.
        cache: Bytes that the model keeps of the prompt, by token: keys and values, and states that don't grow; with
            sliding windows fewer, the longer the prompt is.
    """

    parameters: int
    flops: int
    memory: int | None
    cache: float


def ratio_of_rounds(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times longer one takes than another: the median of the rounds' own ratios, with their quartiles.

    Args:
        base: Seconds of the one, by round.
        other: Seconds of the other, by round.
    """
    ratios = sorted(first / second for first, second in zip(base, other, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": statistics.median(ratios), "low": low, "high": high}


@torch.inference_mode()
def generation_times(decoder: Decoder, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to read a prompt, and to decode greedily after it."""
    ids = prompt.to(decoder.input_device)
    last_only = last_logits_only(decoder.model)
    with _clock(ids.device) as prefill:
        output = decoder.model(input_ids=ids, use_cache=True, **last_only)
        token = output.logits[:, -1:].argmax(dim=-1)
    with _clock(ids.device) as decode:
        for _ in range(new_tokens):
            output = decoder.model(input_ids=token, use_cache=True, **cache_of(output))
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
    last_only = last_logits_only(decoder.model)

    def read() -> Any:
        return decoder.model(input_ids=ids, use_cache=True, **last_only)

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        read()
    kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors_kept(cache_of(read())))
    growth = peak_growth(read, ids.device)
    parameters = list(decoder.model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return Costs(
        parameters=sum(parameter.numel() for parameter in parameters),
        flops=counter.get_total_flops(),
        memory=None if growth is None else weights + growth,
        cache=kept / ids.numel(),
    )


def tensors_kept(value: Any) -> list[Tensor]:
    """The tensors of a cache, of whatever class and in whatever containers, each once."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            found[item.data_ptr() if item.numel() else id(item)] = item
        elif id(item) not in seen:
            seen.add(id(item))
            todo += _contents(item)
    return list(found.values())


def _contents(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    is_ours = type(value).__module__.startswith("transformers.") and not isinstance(value, PreTrainedConfig)
    return list(vars(value).values()) if is_ours and hasattr(value, "__dict__") else []


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
