"""What every evaluation is: settings that prepare a measurement, which any stage's model then undergoes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from linearpatch.data.reader import Reader
from linearpatch.models.decoder import Decoder


@dataclass(frozen=True)
class Metric:
    """A number with all that is needed to trust or repeat it.

    Attributes:
        value: The number; None where it isn't finite.
        stderr: Its standard error, where there is one.
        n: What was counted (tokens, questions).
        protocol: How it was measured, in words.
        token_hash: Hash of the tokens it was measured on.
        reason: Why there is no value.
    """

    value: float | None
    stderr: float | None
    n: int
    protocol: str
    token_hash: str
    reason: str | None = None

    @classmethod
    def of(cls, value: float, stderr: float, n: int, protocol: str, token_hash: str) -> Metric:
        """A metric; a value that isn't finite becomes None with the reason."""
        if math.isfinite(value):
            return cls(value, stderr if math.isfinite(stderr) else None, n, protocol, token_hash)
        return cls(None, None, n, protocol, token_hash, reason=f"the value is {value}")


@dataclass(frozen=True)
class Prepared:
    """A measurement ready to be made on any model.

    Attributes:
        key: What its results depend on beside the model.
        total: Steps that one run takes.
        run: Measures a model, calling its second argument after each step.
    """

    key: Mapping[str, Any]
    total: int
    run: Callable[[Decoder, Callable[[], None]], dict[str, Metric]]


@dataclass(frozen=True)
class Evaluation(ABC):
    """Measures models."""

    version: ClassVar[int] = 1

    @abstractmethod
    def prepare(self, tokenizer: Any, reader: Reader) -> Prepared:
        """Read what is needed, so that missing data is known before anything is computed.

        Args:
            tokenizer: The model's.
            reader: The run's evaluation corpus.
        """

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """The texts it reads, given the run's evaluation corpus."""
        return ()
