"""Tasks as measurements: one for each task, with a key that changes with its text, its data and its settings."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import lm_eval.api.task
import numpy
import torch
from lm_eval import evaluator

from linearpatch.errors import ConfigError, DataError, LinearPatchError
from linearpatch.evaluation.averages import CHOICE, metric_name
from linearpatch.evaluation.evaluation import Measured, Measurement, Preparation, Subject
from linearpatch.evaluation.harness.catalogue import Selection, select
from linearpatch.evaluation.harness.data import Missing, load
from linearpatch.evaluation.harness.model import HarnessModel
from linearpatch.evaluation.harness.samples import samples_of
from linearpatch.evaluation.harness.task_settings import TaskSettings
from linearpatch.evaluation.harness.vllm import check_installed, served
from linearpatch.models.fingerprint import tokenizer_hash
from linearpatch.models.model import LoadedModel
from linearpatch.results.metric import Metric
from linearpatch.runtime.memory import BatchSize
from linearpatch.storage.cache import Cache, canonical
from linearpatch.text import some_of

log = logging.getLogger(__name__)

OF_EQUAL_CHOICES = {"brier_score"}  # metrics of lm_eval that take a table of choices


def prepare(settings: TaskSettings, name: str, datasets_dir: Path | None) -> Preparation:
    """Find and load the tasks.

    Raises:
        ConfigError: a task is unknown, or would run code that it generates.
        DataError: a task's data can't be had, or isn't what the task reads.
    """
    if settings.backend == "vllm":
        check_installed(f"eval.{name}")
    with quiet():
        selection = select(tuple(settings.tasks), settings.own_folder)
        loaded = {entry.name: load(entry, datasets_dir, settings.num_fewshot) for entry in selection.entries}
    missing = {task: loaded_task for task, loaded_task in loaded.items() if isinstance(loaded_task, Missing)}
    if missing:
        names = ", ".join(_names(selection, missing))
        if settings.missing_data == "error":
            first = next(iter(missing.values()))
            places = [place for loaded_task in missing.values() for place in loaded_task.places]
            raise DataError(
                f"eval.{name}: there is no data for {names}. Looked for {some_of(places, 3)}, and on the hub: "
                f"{first.reason}. Set datasets_dir=FOLDER (or LINEARPATCH_DATASETS) to local copies, go online, or "
                "leave these tasks out with missing_data=skip."
            )
        log.warning("eval.%s: no data for %s; skipped (missing_data=skip)", name, names)
    for task, loaded_task in loaded.items():
        if getattr(loaded_task, "UNSAFE_CODE", False):
            raise ConfigError(f"The task {task} runs code that the model writes, which this package never does.")

        if not isinstance(loaded_task, Missing):
            check_choices_are_equal(loaded_task)

    def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
        tokenizer = model.tokenizer
        if settings.chat_template and not tokenizer.chat_template:
            raise ConfigError(f"eval.{name}.chat_template=true: this model's tokenizer has none. Use a chat model.")
        harness = _Harness(settings, tokenizer, f"eval.{name}")
        return [
            _left_out(name, task, missing[task])
            if (task := entry.name) in missing
            else harness.measurement(name, loaded[task])
            for entry in selection.entries
        ]

    return measurements


class _Harness:
    """Runs tasks on one model after the other, with one wrapper and one tokenisation for all."""

    def __init__(self, settings: TaskSettings, tokenizer: Any, owner: str) -> None:
        self._settings, self._owner = settings, owner
        self._tokenizer = copy.deepcopy(tokenizer)  # lm_eval gives it a padding token
        self._tokenizer_hash = tokenizer_hash(tokenizer)  # once: a vocabulary takes a while to write out
        self._model: HarnessModel | None = None

    def measurement(self, name: str, task: Any) -> Measurement:
        """A task as a measurement, `name/TASK`."""
        settings, shots = self._settings, task.get_config("num_fewshot")
        available = len(task.eval_docs)
        questions = available if settings.limit is None else min(settings.limit, available)
        extras = [f"{shots}-shot"]
        extras += [f"first {questions}"] if questions < available else []
        extras += ["chat template"] if settings.chat_template else []
        extras += ["system instruction"] if settings.system_instruction else []
        extras += [f"vLLM {version('vllm')}"] if settings.backend == "vllm" else []
        protocol = f"lm_eval {lm_eval.__version__}, {task.task_name} v{task.VERSION}, {', '.join(extras)}"
        key = {
            "version": settings.version,
            "harness": lm_eval.__version__,
            "task": _definition(task),
            "questions": _content(task, questions, shots),
            "tokenizer": self._tokenizer_hash,
            "max_length": settings.max_length,
            "chat_template": self._tokenizer.chat_template if settings.chat_template else None,
            "system_instruction": settings.system_instruction,
            "backend": settings.backend,
        }

        def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
            measured = []
            for subject in subjects:
                results, token_hash = self._evaluate(task, subject, lambda share: on_step(share * questions))
                measured.append(_measured(name, task, results, protocol, token_hash))
            return measured

        return Measurement(f"{name}/{task.task_name}", key, questions, run)

    def _evaluate(self, task: Any, subject: Subject, on_step: Callable[[float], None]) -> tuple[Mapping[str, Any], str]:
        """lm_eval's results on one model, and the hash of the tokens it read."""
        if self._settings.backend == "vllm":
            with served(subject, self._tokenizer, self._settings, self._owner) as engine:
                results = self._ask(task, engine)
            on_step(1)
            requests = [instance.args for instance in task.instances]
            return results, hashlib.sha256(canonical(requests).encode()).hexdigest()[:16]
        with quiet():
            if self._model is None:
                self._model = HarnessModel(
                    subject.decoder,
                    self._tokenizer,
                    batch_size=BatchSize(self._settings.batch_size, subject.decoder.input_device.type, self._owner),
                    max_length=self._settings.max_length,
                    share=self._settings.share_prefixes,
                )
            self._model.measure(subject.decoder, on_step)
        return self._ask(task, self._model), self._model.token_hash

    def _ask(self, task: Any, model: Any) -> Mapping[str, Any]:
        """lm_eval's results; what is sampled is the same at every call."""
        settings = self._settings
        with quiet(), scoring(task.task_name), torch.random.fork_rng():
            torch.manual_seed(0)
            results: Mapping[str, Any] = evaluator.evaluate(
                model,
                {"tasks": {task.task_name: task}},
                limit=settings.limit,
                bootstrap_iters=0,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
                system_instruction=settings.system_instruction,
            )
        return results


@contextmanager
def scoring(task: str) -> Iterator[None]:
    """Turn what a task's own definition gets wrong into a sentence; what is wrong with the model stays as it is.

    Raises:
        DataError: its templates, its choices or its metrics don't fit its questions.
    """
    try:
        yield
    except (LinearPatchError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"The task {task} can't be scored: {type(error).__name__}: {reason}. Its templates, choices or metrics "
            "don't fit its questions. Correct its YAML, or leave it out of tasks."
        ) from error


def check_choices_are_equal(task: Any) -> None:
    """Reject a metric over a table of choices where questions have different numbers of them.

    Raises:
        DataError: one has more than another.
    """
    metrics = [str(metric["metric"]) for metric in task.get_config("metric_list") or []]
    if not OF_EQUAL_CHOICES & set(metrics) or task.get_config("output_type") != "multiple_choice":
        return
    try:
        counts = sorted({len(task.doc_to_choice(document)) for document in task.eval_docs})
    except Exception:  # what is wrong with its questions is reported where they are asked
        return
    if len(counts) > 1:
        raise DataError(
            f"The task {task.task_name} has questions with {counts[0]} to {counts[-1]} choices, and its metric "
            f"{' and '.join(sorted(OF_EQUAL_CHOICES & set(metrics)))} needs the same number everywhere. Leave that "
            "metric out of the task's metric_list, or the task out of tasks."
        )


def _measured(name: str, task: Any, results: Mapping[str, Any], protocol: str, token_hash: str) -> Measured:
    """lm_eval's results as metrics, with what each question gave where a metric is a mean over questions.

    Where a question is a choice, also which answer was chosen (`CHOICE`), and the share that guessing gets right.
    """
    task_name = task.task_name
    metrics: dict[str, Metric] = {}
    questions: dict[str, torch.Tensor] = {}
    documents: dict[str, torch.Tensor] = {}
    answers = results["samples"][task_name]
    choices = _choices(task, [sample for sample in answers if sample["filter"] == "none"])
    if choices:
        label = metric_name(name, task_name, CHOICE)
        questions[label] = torch.tensor(choices.chosen).float()
        documents[label] = _hashes([sample for sample in answers if sample["filter"] == "none"])
    for key, value in results["results"][task_name].items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        label = metric_name(name, task_name, metric if filtered == "none" else f"{metric}/{filtered}")
        samples = [sample for sample in answers if sample["filter"] == filtered]
        values = [sample.get(metric) for sample in samples]
        stderr, unit = None, ""
        if all(isinstance(item, (int, float)) for item in values):
            each = torch.tensor(values, dtype=torch.float64)
            if math.isclose(each.mean().item(), value, abs_tol=1e-9):  # else the metric isn't a mean over questions
                stderr = each.std(correction=1).item() / math.sqrt(len(each)) if len(each) > 1 else None
                unit = "share" if each.min() >= 0 and each.max() <= 1 else ""
                questions[label] = each.float()
                documents[label] = _hashes(samples)
        metrics[label] = Metric.of(
            float(value), stderr, len(values), protocol, token_hash, unit=unit, counted="questions",
            chance=choices.chance if choices and metric in ("acc", "acc_norm") else None,
        )  # fmt: skip
    for sampled in samples_of(task):
        hashes = {sample["doc_id"]: sample for sample in answers}
        for k in sampled.counts:
            label = metric_name(name, task_name, f"{sampled.name}/pass@{k}")
            each = torch.tensor(sampled.pass_at(k), dtype=torch.float64)
            stderr = each.std(correction=1).item() / math.sqrt(len(each)) if len(each) > 1 else None
            asked = f"{protocol}, {sampled.total} answers each"
            metrics[label] = Metric.of(
                each.mean().item(), stderr, len(each), asked, token_hash, unit="share", counted="questions"
            )
            questions[label] = each.float()
            documents[label] = _hashes([hashes[document] for document in sampled.documents])
    return Measured(metrics, questions, documents)


@dataclass(frozen=True)
class _Choices:
    """What a model chose at each question, and the share of right answers that guessing gives."""

    chosen: list[int]
    chance: float


def _choices(task: Any, samples: Sequence[Mapping[str, Any]]) -> _Choices | None:
    """The answers chosen, by the log-likelihood a character where the task has `acc_norm`, as lm_eval chooses.

    None where questions aren't choices of one answer among several.
    """
    if task.get_config("output_type") != "multiple_choice" or not samples:
        return None
    normalised = any(metric["metric"] == "acc_norm" for metric in task.get_config("metric_list") or [])
    chosen, chances = [], []
    for sample in samples:
        options = task.doc_to_choice(sample["doc"])
        scores = [score for score, *_ in sample["filtered_resps"]][: len(options)]
        if len(scores) < 2:
            return None
        lengths = [len(option) for option in options] if normalised else [1] * len(scores)
        chosen.append(
            int(numpy.argmax([score / max(length, 1) for score, length in zip(scores, lengths, strict=True)]))
        )
        chances.append(1 / len(scores))
    return _Choices(chosen, sum(chances) / len(chances))


def _hashes(samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Hashes of the questions' texts."""
    return torch.tensor([int(sample["doc_hash"][:15], 16) for sample in samples])


def _left_out(name: str, task: str, missing: Missing) -> Measurement:
    """A task without data: metrics without values that say why."""
    kinds = [metric["metric"] for metric in missing.entry.config.get("metric_list") or [{"metric": "acc"}]]
    reason = f"no data: {missing.reason}"
    metrics = {
        metric_name(name, task, str(kind)): Metric(None, None, 0, task, "", "share", "questions", reason=reason)
        for kind in kinds
    }
    key = {"missing": missing.reason, "metrics": list(metrics)}
    return Measurement(f"{name}/{task}", key, 0, lambda subjects, on_step: [Measured(metrics) for _ in subjects])


def _names(selection: Selection, missing: Mapping[str, Missing]) -> list[str]:
    """The tasks without data; a group that lacks all of its own is named in one word."""
    names = [f"the examples of {task}" if loaded_task.examples_only else task for task, loaded_task in missing.items()]
    for group, members in selection.groups.items():
        if members and all(task in names for task in members):
            at = names.index(members[0])
            names = [*names[:at], f"{group} ({len(members)} tasks)", *[n for n in names[at:] if n not in members]]
    return names


def _definition(task: Any) -> Any:
    """A task's configuration without what only says where its data lies."""
    config = task.dump_config()
    for key in ("custom_dataset", "dataset_kwargs", "metadata"):
        config.pop(key, None)
    return {**json.loads(canonical(config)), "version": task.VERSION}


def _content(task: Any, questions: int, shots: int) -> str:
    """Hash of the questions that a task asks, and of the examples it can draw."""
    digest = hashlib.sha256()
    for _, document in zip(range(questions), task.eval_docs, strict=False):
        digest.update(canonical(document).encode())
    for document in (task.fewshot_docs() or []) if shots else []:
        digest.update(canonical(document).encode())
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """lm_eval without its warnings about ordinary use and without bars of its own."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mock.patch.object(lm_eval.api.task, "tqdm", lambda items, **_: items):
            yield
    finally:
        logger.setLevel(level)
