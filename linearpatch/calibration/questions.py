"""Questions with several answers, by which a pruner may judge models: what it asks of them, wherever they are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from linearpatch.models.decoder import Decoder


@dataclass(frozen=True)
class Answered:
    """How a model did.

    Attributes:
        accuracy: Mean over tasks of the share of right answers.
        loss: Mean over tasks of the right answers' negative log-likelihood for each token, in nats.
    """

    accuracy: float
    loss: float


class Questions(Protocol):
    """Questions that a tokenizer has made tokens of."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What the answers depend on beside the model, for cache keys."""

    def ask(self, decoder: Decoder) -> Answered:
        """Ask a model all of them."""


class QuestionTexts(Protocol):
    """Questions that have been read, before there is a model."""

    def tokenized(self, tokenizer: Any) -> Questions:
        """The same for a model's tokenizer."""


@dataclass(frozen=True)
class QuestionSource:
    """Where questions come from.

    Attributes:
        tasks: Names of tasks of lm_eval.
        limit: So many of each, drawn at random.
        seed: Of the drawing.
        include_path: A folder with more tasks.
    """

    tasks: tuple[str, ...]
    limit: int | None
    seed: int
    include_path: str | None = None

    def read(self, datasets_dir: Path | None) -> QuestionTexts:
        """Read the calibration questions of the tasks; never those that evaluations ask.

        Raises:
            ConfigError: a task is unknown, has no such questions, or isn't a choice among answers.
            DataError: their data can't be had.
        """
        from linearpatch.evaluation.harness.calibration import read_questions  # lm_eval takes seconds to import

        return read_questions(self, datasets_dir)
