"""What each window of text and each question gave, from the files beside a record."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from linearpatch.errors import StorageError
from linearpatch.report.reading import Run
from linearpatch.report.rows import Row
from linearpatch.report.statistics import Floats
from linearpatch.results.metric import Metric
from linearpatch.results.questions import Answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A metric before it was averaged.

    Attributes:
        weights: Of each stratum: 1 for the windows of a corpus, those of the tasks for an average over tasks.
        values: Of each stratum: mean losses of windows, or what each question gave.
        documents: Hashes of the questions' texts; empty for windows.
        counted: What the values are of: `windows` or `questions`.
    """

    weights: tuple[float, ...]
    values: tuple[Floats, ...]
    documents: tuple[str, ...]
    counted: str

    @property
    def count(self) -> int:
        """Windows or questions in all."""
        return sum(map(len, self.values))


class Samples:
    """Reads what lies beside the records of some runs, each folder once, when first asked for it."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._folders = {run.record.run_id: run.folder for run in runs}
        self._read: dict[Path, Answers | None] = {}
        self._samples: dict[tuple[int, str], Sample | str] = {}

    def of(self, row: Row, name: str) -> Sample | str:
        """The sample of a metric of a row, or the reason why there is none."""
        key = (id(row), name)
        if key not in self._samples:
            self._samples[key] = self._find(row, name)
        return self._samples[key]

    def _find(self, row: Row, name: str) -> Sample | str:
        reason = "no file of windows or questions beside the record"
        for run in row.runs:
            answers = self._answers(self._folders[run]) if run in self._folders else None
            if answers is None:
                continue
            sample = _sample(answers, row.variant.stage, name, row)
            if isinstance(sample, Sample):
                return sample
            reason = sample
        return reason

    def _answers(self, folder: Path) -> Answers | None:
        if folder not in self._read:
            try:
                self._read[folder] = Answers(folder)
            except StorageError as error:
                log.warning("no intervals from %s: %s", folder, error)
                self._read[folder] = None
        return self._read[folder]


def _sample(answers: Answers, stage: str, name: str, row: Row) -> Sample | str:
    metric = row.metrics[name]
    windows = answers.arrays.get(f"{stage}/{name}/windows")
    if windows is not None:
        losses = windows.double().flatten().numpy()
        is_perplexity = name.startswith("ppl/")
        whole = metric.value is not None and len(losses) > 0 and bool(numpy.isfinite(losses).all())
        expected = math.log(metric.value or 1) if is_perplexity else metric.value or 0.0
        if not whole or not math.isclose(losses.mean(), expected, rel_tol=1e-6, abs_tol=1e-6):
            recorded = "perplexity" if is_perplexity else "mean"
            return f"the losses of the windows don't give the recorded {recorded}"
        return Sample((1.0,), (losses,), (), "windows")
    weights = _weights(metric, name, row)
    if weights is None:
        return "how the average weighs its tasks isn't recorded"
    questions, documents = answers.questions.get(stage, {}), answers.documents.get(stage, {})
    if not all(part in questions and len(questions[part]) > 0 for part in weights):
        return "no answers to each question (questions.parquet), or no losses of each window (diagnostics.safetensors)"
    values = tuple(questions[part] for part in weights)
    total = sum(weight * float(each.mean()) for weight, each in zip(weights.values(), values, strict=True))
    if metric.value is None or not math.isclose(total, metric.value, abs_tol=1e-5):
        return "the answers to the questions don't give the recorded share"
    texts = tuple(text for part in weights for text in documents.get(part, ()))
    return Sample(tuple(weights.values()), values, texts, "questions")


def _weights(metric: Metric, name: str, row: Row) -> dict[str, float] | None:
    """How much each task counts: alike or by its questions, whichever gives the recorded average."""
    if not metric.parts:
        return {name: 1.0}
    parts = {part: row.metrics[part] for part in metric.parts if part in row.metrics}
    if len(parts) < len(metric.parts) or metric.value is None:
        return None
    questions = sum(part.n for part in parts.values())
    alike = dict.fromkeys(parts, 1 / len(parts))
    for weights in (
        alike,
        {part: part_metric.n / questions for part, part_metric in parts.items()} if questions else alike,
    ):
        total = sum(weight * (parts[part].value or 0.0) for part, weight in weights.items())
        if math.isclose(total, metric.value, rel_tol=1e-9, abs_tol=1e-9):
            return weights
    return None
