"""Calibration questions of tasks: those of the split for training, or another that evaluations don't ask."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance

from linearpatch.calibration.questions import Answered, QuestionSource
from linearpatch.errors import ConfigError, DataError
from linearpatch.evaluation.harness.catalogue import Entry, select
from linearpatch.evaluation.harness.data import Missing, load
from linearpatch.evaluation.harness.model import HarnessModel
from linearpatch.evaluation.harness.suite import quiet, scoring
from linearpatch.models.decoder import Decoder
from linearpatch.models.fingerprint import tokenizer_hash
from linearpatch.runtime.memory import BatchSize
from linearpatch.storage.cache import canonical

OTHER_SPLITS = ("training_split", "validation_split", "fewshot_split")  # in this order, if they aren't asked


@dataclass(frozen=True)
class Question:
    """A question, with what lm_eval asks a model of it.

    Attributes:
        document: As the data has it.
        requests: One for each answer.
        right: Index of the right one.
    """

    document: Mapping[str, Any]
    requests: Sequence[Instance]
    right: int


@dataclass(frozen=True)
class TaskQuestions:
    """Calibration questions of some tasks, before there is a model.

    Attributes:
        questions: By task: lm_eval's task, which scores them, and the questions.
    """

    questions: Mapping[str, tuple[Any, Sequence[Question]]]

    def tokenized(self, tokenizer: Any) -> TokenizedQuestions:
        """For a model's tokenizer."""
        return TokenizedQuestions(self, tokenizer)


class TokenizedQuestions:
    """The questions, asked of one model after the other; their tokens are made once."""

    def __init__(self, texts: TaskQuestions, tokenizer: Any) -> None:
        self._texts = texts
        self._tokenizer = copy.deepcopy(tokenizer)  # lm_eval gives it a padding token
        self._model: HarnessModel | None = None
        documents = [question.document for _, asked in texts.questions.values() for question in asked]
        self._hash = hashlib.sha256(canonical(documents).encode()).hexdigest()[:16]
        self._tokenizer_hash = tokenizer_hash(tokenizer)

    @property
    def key(self) -> Mapping[str, Any]:
        """The questions, the tokenizer and lm_eval's version."""
        tasks = list(self._texts.questions)
        return {"tasks": tasks, "hash": self._hash, "tokenizer": self._tokenizer_hash, "harness": lm_eval.__version__}

    def ask(self, decoder: Decoder) -> Answered:
        """Ask a model all of them; lm_eval scores the answers."""
        with quiet():
            if self._model is None:
                batch_size = BatchSize("auto", decoder.input_device.type, "pruner")
                self._model = HarnessModel(decoder, self._tokenizer, batch_size=batch_size, max_length=None, share=True)
            self._model.measure(decoder, lambda share: None)
            done = [self._task(self._model, task, asked) for task, asked in self._texts.questions.values()]
        return Answered(
            sum(answered.accuracy for answered in done) / len(done), sum(answered.loss for answered in done) / len(done)
        )

    def _task(self, model: HarnessModel, task: Any, questions: Sequence[Question]) -> Answered:
        requests = [request for question in questions for request in question.requests]
        scores = iter(model.loglikelihood(requests))
        right, losses = 0.0, []
        for question in questions:
            own = [next(scores) for _ in question.requests]
            with scoring(task.task_name):
                scored = task.process_results(question.document, own)
            right += float(scored.get("acc_norm", scored["acc"]))
            tokens = max(1, len(model.tok_encode(question.requests[question.right].args[1])))
            losses.append(-own[question.right][0] / tokens)
        return Answered(right / len(questions), sum(losses) / len(losses))


def read_questions(source: QuestionSource, datasets_dir: Path | None) -> TaskQuestions:
    """Read the calibration questions of some tasks.

    Raises:
        ConfigError: a task is unknown, has no such questions, or isn't a choice among answers.
        DataError: their data can't be had.
    """
    folder = Path(source.include_path).expanduser().resolve() if source.include_path else None
    questions_by_task = {}
    with quiet():
        for entry in select(source.tasks, folder).entries:
            task = load(of_calibration(entry), datasets_dir, 0)
            if isinstance(task, Missing):
                raise DataError(
                    f"pruner=task: there is no data for calibration questions of {entry.name}. Looked for "
                    f"{', '.join(task.places[:3])}, and on the hub: {task.reason}. Set datasets_dir=FOLDER (or "
                    "LINEARPATCH_DATASETS) to local copies with that split, or go online."
                )
            if task.get_config("output_type") != "multiple_choice":
                raise ConfigError(
                    f"pruner.tasks holds {entry.name}, which isn't a choice among answers. Choose others, such as "
                    "arc_easy."
                )
            documents = list(task.eval_docs)
            if source.limit is not None and len(documents) > source.limit:
                documents = random.Random(source.seed).sample(documents, source.limit)
            with scoring(entry.name):
                questions_by_task[entry.name] = task, [_question(task, document) for document in documents]
    return TaskQuestions(questions_by_task)


def of_calibration(entry: Entry) -> Entry:
    """A task that asks the questions of another split than the one that evaluations ask.

    Raises:
        ConfigError: it has none.
    """
    config = {**entry.config, **entry.changes}
    asked = config.get("test_split") or config.get("validation_split")
    splits = [config[name] for name in OTHER_SPLITS if config.get(name) and config[name] != asked]
    if not splits:
        raise ConfigError(
            f"pruner.tasks holds {entry.name}, which has no questions beside those of its split {asked!r}, on which "
            "models are evaluated. Choose tasks with a training or validation split, such as arc_easy."
        )
    none = dict.fromkeys(("training_split", "fewshot_split", "validation_split"))
    return replace(entry, changes={**entry.changes, **none, "test_split": splits[0], "num_fewshot": 0})


def _question(task: Any, document: Mapping[str, Any]) -> Question:
    context = task.fewshot_context(document, num_fewshot=0)
    requests = task.construct_requests(doc=document, ctx=context, metadata=(task.task_name, 0, 1))
    choices = task.doc_to_choice(document)
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(right, list | tuple):
        right = right[0]
    index = choices.index(right) if isinstance(right, str) and right in choices else int(right)
    return Question(document, requests[: len(choices)], index)
