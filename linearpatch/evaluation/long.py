"""Long inputs: does a model still find what was said at some depth of a long text?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, require_choice, require_range, require_seed
from linearpatch.evaluation.evaluation import Aggregate, Evaluation, Measurement, Preparation
from linearpatch.evaluation.writing.haystacks import HiddenList, HiddenTask, Needle
from linearpatch.evaluation.writing.measured_task import MeasuredTask
from linearpatch.evaluation.writing.questions import Question
from linearpatch.models.decoder import context_length
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component
from linearpatch.results.metric import Metric
from linearpatch.runtime.memory import check_batch_size
from linearpatch.storage.cache import Cache

log = logging.getLogger(__name__)

TASKS: Mapping[str, type[HiddenTask]] = {task.name: task for task in (Needle, HiddenList)}
SHORTEST = 128  # tokens of a prompt


@component("eval", "long")
@dataclass(frozen=True)
class LongInputs(Evaluation):
    """Retrieval from long inputs made by rules: accuracy by length and depth (`long/needle/1024/depth_50/acc`).

    `needle` hides the secret word of a person among unrelated sentences and asks for it, `copy` a list of words (the
    share of words at their places). Answers are written, always the likeliest token.

    Attributes:
        tasks: Any of `needle`, `copy`.
        lengths: Tokens of the prompts with the answers; those that the model can't read are left out.
        depths: Where the sentence is, in percent of the text before the question.
        limit: Questions for each length and depth.
        seed: Of the questions.
        batch_size: Sequences at a time; `auto` takes as many as fit into memory.
    """

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096])
    depths: list[int] = field(default_factory=lambda: [0, 25, 50, 75, 100])
    limit: int = 4
    seed: int = 0
    batch_size: Any = field(default="auto", metadata={"identity": False})  # OmegaConf has no union with str

    def __post_init__(self) -> None:
        for name in ("tasks", "lengths", "depths"):
            if not getattr(self, name):
                raise ConfigError(f"eval.long.{name} is empty. Name at least one, or leave eval.long.{name} out.")
        for task in self.tasks:
            require_choice("eval.long.tasks", task, TASKS)
        for length in self.lengths:
            require_range("eval.long.lengths", length, low=SHORTEST)
        for depth in self.depths:
            require_range("eval.long.depths", depth, low=0, high=100)
        require_range("eval.long.limit", self.limit, low=1)
        require_seed("eval.long.seed", self.seed)
        check_batch_size("eval.long.batch_size", self.batch_size)

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Nothing is read; each task and length is a measurement of its own."""

        def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
            lengths = self._lengths(model, name)
            return [self._measurement(name, TASKS[task], length, model) for task in self.tasks for length in lengths]

        return measurements

    def aggregates(self, name: str, metrics: Mapping[str, Metric]) -> list[Aggregate]:
        """The mean over all lengths of each task."""
        means = []
        for task in self.tasks:
            labels = [label for length in self.lengths if (label := f"{name}/{task}/{length}/acc") in metrics]
            if len(labels) > 1:
                weights = dict.fromkeys(labels, 1 / len(labels))
                protocol = f"mean over the lengths {', '.join(label.split('/')[-2] for label in labels)}"
                means.append(Aggregate(f"{name}/{task}/acc", weights, protocol, retained=True, headline=True))
        return means

    def _lengths(self, model: LoadedModel, name: str) -> list[int]:
        """The lengths that a model can read.

        Raises:
            ConfigError: there is none.
        """
        longest = context_length(model.decoder.config)
        if longest is None:
            return self.lengths
        lengths = [length for length in self.lengths if length <= longest]
        left_out = [length for length in self.lengths if length > longest]
        if not lengths:
            raise ConfigError(
                f"eval.{name}.lengths is {self.lengths}, and the model reads {longest:,} tokens. Set a length of at "
                f"most {longest}."
            )
        if left_out:
            shown = ", ".join(f"{length:,}" for length in left_out)
            log.warning("eval.%s: the model reads %s tokens; left out: %s", name, f"{longest:,}", shown)
        return lengths

    def _measurement(self, name: str, task: type[HiddenTask], length: int, model: LoadedModel) -> Measurement:
        def count(text: str) -> int:
            return len(model.tokenizer(text).input_ids)

        questions: list[Question] = []
        groups: dict[str, range] = {}
        for depth in self.depths:
            start = len(questions)
            hidden = task(length, depth / 100, count)
            questions += hidden.questions(self.limit, self.seed)
            groups[f"depth_{depth}"] = range(start, len(questions))
        measured = MeasuredTask(hidden, questions, model.tokenizer, self.batch_size, f"eval.{name}")
        depths = ", ".join(map(str, self.depths))
        protocol = (
            f"{task.name}: prompts of up to {length} tokens, depths of {depths} %, {self.limit} questions each, seed "
            f"{self.seed}"
        )
        return measured.measurement(f"{name}/{task.name}/{length}", protocol, groups)
