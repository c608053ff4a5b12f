"""From the models of some stages to metrics in the record; what was measured before comes from the cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linearpatch.evaluation.evaluation import Evaluation, Measurement, Subject
from linearpatch.evaluation.retention import Results, RetainedBy, compare
from linearpatch.models.edit import Edit
from linearpatch.models.model import LoadedModel
from linearpatch.results.fields import plain, section_of
from linearpatch.results.metric import Metric
from linearpatch.results.questions import Answers
from linearpatch.results.record import Record
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Cache, Entry

log = logging.getLogger(__name__)

WORTH_A_LINE_S = 20  # in the log, where no bar shows progress


def measure(
    model: LoadedModel,
    stages: Mapping[str, Edit],
    evaluations: Mapping[str, Evaluation],
    measurements: Sequence[Measurement],
    cache: Cache,
    record: Record,
    answers: Answers,
) -> None:
    """Measure the models of some stages, and what they retain of the dense one.

    Args:
        model: The dense model.
        stages: What makes each stage's model of it.
        evaluations: Those asked for, by name …
        measurements: … and all that they measure.
        cache: Holds what was measured before.
        record: Gets the metrics …
        answers: … and the values at each question.
    """
    dense = model.decoder
    keys = {stage: {"model": model.key, **edit.identity()} for stage, edit in stages.items()}
    subjects = {stage: Subject(stage, edit.decoder(dense), dense, edit) for stage, edit in stages.items()}
    for stage in stages:
        record.metrics.setdefault(stage, {})
        with record.step(f"evaluate {stage}"):
            for measurement in (one for one in measurements if not one.together):
                _measure(measurement, [subjects[stage]], [keys[stage]], cache, record, answers)
    if together := [one for one in measurements if one.together]:
        with record.step("evaluate together"):
            for measurement in together:
                _measure(measurement, list(subjects.values()), list(keys.values()), cache, record, answers)
    results = {stage: Results(metrics, answers.questions.get(stage, {})) for stage, metrics in record.metrics.items()}
    record.retained = _merged(record.retained, compare(results, evaluations), evaluations)


def _measure(
    measurement: Measurement,
    subjects: Sequence[Subject],
    keys: Sequence[Mapping[str, Any]],
    cache: Cache,
    record: Record,
    answers: Answers,
) -> None:
    """Make one measurement, or take it from the cache, and enter what it found."""

    def measure() -> Entry:
        what = f"{measurement.name}, {' '.join(subject.stage for subject in subjects)}"
        started = time.perf_counter()
        with steps(what, measurement.total) as on_step:
            found = measurement.run(subjects, on_step)
        if (seconds := time.perf_counter() - started) > WORTH_A_LINE_S:
            log.info("%s: measured in %.0f s", what, seconds)
        tensors = {
            f"{index}|{kind}|{name}": tensor
            for index, measured in enumerate(found)
            for kind in ("questions", "documents", "arrays")
            for name, tensor in getattr(measured, kind).items()
        }
        metrics = [plain(measured.metrics) for measured in found]
        return Entry(tensors, {"metrics": metrics})

    key = {"models": list(keys), "evaluation": measurement.name, **measurement.key}
    entry = cache.get("evaluation", key, measure)
    for subject, metrics in zip(subjects, entry.facts["metrics"], strict=True):
        measured = {name: section_of(Metric, metric) for name, metric in metrics.items()}
        record.metrics.setdefault(subject.stage, {}).update(measured)
    for path, tensor in entry.tensors.items():
        index, kind, name = path.split("|")
        answers.add(subjects[int(index)].stage, kind, name, tensor)


def _merged(
    earlier: Mapping[str, RetainedBy], found: Mapping[str, RetainedBy], evaluations: Iterable[str]
) -> dict[str, RetainedBy]:
    """What is retained, with the evaluations of this run in place of what an earlier one found."""
    merged: dict[str, RetainedBy] = {}
    for stage, definitions in earlier.items():
        for definition, values in definitions.items():
            kept = {name: value for name, value in values.items() if name.partition("/")[0] not in evaluations}
            merged.setdefault(stage, {})[definition] = kept
    for stage, definitions in found.items():
        for definition, values in definitions.items():
            merged.setdefault(stage, {}).setdefault(definition, {}).update(values)
    return merged
