"""What every evaluation is: settings that become measurements, which any stage's model then undergoes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from linearpatch.data.reader import Reader
from linearpatch.models.decoder import Decoder
from linearpatch.results.sections import LARGEST

# What each stage is compared with.
BASES: Mapping[str, Sequence[str]] = {
    "dense": (),
    "pruned": ("dense",),
    "patched": ("dense", "pruned"),
    "distilled": ("dense", "pruned", "patched"),
}


@dataclass(frozen=True)
class Metric:
    """A number with all that is needed to trust or repeat it.

    Attributes:
        value: The number; None where it isn't finite.
        stderr: Its standard error, where there is one.
        n: What was counted (tokens, questions, repetitions).
        protocol: How it was measured, in words.
        token_hash: Hash of the tokens it was measured on.
        unit: `share`, `s`, `1/s`, `bytes`, `FLOP`, `count`, or nothing.
        counted: What `n` counts.
        headline: Whether short tables show it.
        reason: Why there is no value.
        versus: How it compares with other stages, by stage.
    """

    value: float | None
    stderr: float | None
    n: int
    protocol: str
    token_hash: str
    unit: str = ""
    counted: str = "tokens"
    headline: bool = False
    reason: str | None = None
    versus: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, value: float, stderr: float | None, n: int, protocol: str, token_hash: str, **more: str | bool
    ) -> Metric:
        """A metric; a value that isn't finite, or is too large to reckon with, becomes None with the reason."""
        if abs(value) <= LARGEST:
            finite = stderr is not None and abs(stderr) <= LARGEST
            return cls(value, stderr if finite else None, n, protocol, token_hash, **more)  # type: ignore[arg-type]
        return cls(None, None, n, protocol, token_hash, **more, reason=f"the value is {value}")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Measured:
    """What one measurement found on one model.

    Attributes:
        metrics: By name, such as `qa/arc_easy/acc`.
        questions: For metrics that are means over questions, the value at each, `[n]`, by the metric's name.
        documents: Which questions these are: a hash of each one's text, int64 `[n]`, by the metric's name.
        arrays: Small arrays for plots, by name.
    """

    metrics: Mapping[str, Metric]
    questions: Mapping[str, Tensor] = field(default_factory=dict)
    documents: Mapping[str, Tensor] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model under measurement.

    Attributes:
        stage: `dense`, `pruned`, `patched` or `distilled`.
        decoder: The model; all subjects of a run share their weights.
        dense: The model that it came from; itself at stage `dense`.
        removed: Dense indices of the layers that it lacks.
    """

    stage: str
    decoder: Decoder
    dense: Decoder
    removed: Sequence[int] = ()


@dataclass(frozen=True)
class Measurement:
    """One thing to measure: the perplexity of a corpus, the accuracy on a task. Each is cached by itself.

    Attributes:
        name: Such as `qa/arc_easy`.
        key: What its results depend on beside the models.
        total: Steps that one call of `run` takes.
        run: Measures models, one answer for each; calls its second argument with the number of steps done.
        together: Whether it takes the models of all stages in one call, or each alone.
    """

    name: str
    key: Mapping[str, Any]
    total: float
    run: Callable[[Sequence[Subject], Callable[[float], None]], Sequence[Measured]]
    together: bool = False


@dataclass(frozen=True)
class Aggregate:
    """A weighted mean of metrics that are means over questions.

    Attributes:
        name: Such as `qa/paper`.
        weights: Weight of each metric in it; they sum to one.
        protocol: What it is, in words.
        pooled: Whether it is the mean over all their questions in one heap, so that weights follow their numbers.
        retained: Whether retained performance is told for it.
        headline: Whether short tables show it.
    """

    name: str
    weights: Mapping[str, float]
    protocol: str
    pooled: bool = False
    retained: bool = False
    headline: bool = False


# Makes the measurements, given the model's tokenizer.
Preparation = Callable[[Any], Sequence[Measurement]]


@dataclass(frozen=True)
class Evaluation(ABC):
    """Measures models."""

    version: ClassVar[int] = 1

    @abstractmethod
    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Read what is needed, so that missing data is known before a model is loaded.

        Args:
            name: First part of the names of its metrics.
            reader: The run's evaluation corpus.
        """

    def rough_tokens(self, reader: Reader) -> int:
        """Tokens that one model reads, roughly, to estimate times before anything is read; `reader` as in `prepare`."""
        return 20_000

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """The texts it reads, given the run's evaluation corpus."""
        return ()

    def metrics_of_texts(self, reader: Reader) -> tuple[str, ...]:
        """Names of the metrics that are called after a text, not after the evaluation, so that two could share one."""
        return ()

    def aggregates(self, name: str, metrics: Mapping[str, Mapping[str, Any]]) -> Sequence[Aggregate]:
        """Means over what it measured, given the metrics of one stage as the record holds them."""
        return ()
