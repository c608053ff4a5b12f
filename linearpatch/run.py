"""One experiment from top to bottom.

    load -> token blocks -> ranking pass -> removed layers -> fit pass -> patches -> distillation
    -> views -> evaluation -> checkpoint

Everything here takes values; the configuration stays in `config.py`, the command line in `cli.py`.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from linearpatch.cache import Cache, Entry
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.hub import push
from linearpatch.checkpoint.saving import Patches, check_foldable, check_target, save_checkpoint
from linearpatch.data.blocks import TokenBlocks
from linearpatch.data.reader import Text
from linearpatch.describe import (
    describe_calibration,
    describe_distillation,
    describe_model,
    describe_patch,
    describe_pruning,
)
from linearpatch.distillation.distill import Distilled, TrainingFailed, distill
from linearpatch.errors import NumericsError
from linearpatch.evaluation.evaluation import Measurement, Subject
from linearpatch.evaluation.retention import Results, Retained, compare
from linearpatch.experiment import Experiment
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.fingerprint import parameter_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.views import interfaces_of, view_of
from linearpatch.progress import steps
from linearpatch.pruners.pruner import Selection
from linearpatch.registry import name_of
from linearpatch.results.answers import Answers
from linearpatch.results.record import Record, recording
from linearpatch.stopping import Terminated
from linearpatch.tracking.tracker import NoTracker
from linearpatch.workers import Workers

log = logging.getLogger(__name__)

WORTH_A_LINE_S = 20  # in the log, where no bar shows progress


def run(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    command: str = "",
) -> Record:
    """Prune, patch and measure a model.

    Args:
        experiment: What to do.
        folder: Where `result.json` and the log go; None takes the experiment's own.
        config: The configuration as plain values, for the record; None takes the experiment's fields.
        command: The command that repeats the run, for the record.

    Returns:
        The completed record. A run that fails leaves its record with the reason, and raises.
    """
    folder, settings = folder or experiment.folder(), {"choices": experiment.choices, **(config or asdict(experiment))}
    record = Record(experiment.run_id, experiment.group, command, experiment.seed, settings)
    workers = Workers.launched()
    if experiment.training:
        experiment.training.check_processes(workers.count)
    if workers.is_main:
        return _run(experiment, folder, record, workers)
    with TemporaryDirectory() as scratch:  # helps with the distillation; there is nothing else to do or to tell
        helping = replace(experiment, eval={}, save_model=False, push_to_hub=None, tracker=NoTracker())
        try:
            return _run(helping, Path(scratch), record, workers)
        except (TrainingFailed, Terminated):  # the first process has it, too, and tells
            return record


def _run(experiment: Experiment, folder: Path, record: Record, workers: Workers) -> Record:
    with recording(record, folder), experiment.tracker.follow(record, folder) as curve, Answers(folder) as answers:
        if experiment.save_model:
            check_target(folder / "model")
        n, cache = experiment.num_pruned_layers, Cache(experiment.cache_path)
        training = experiment.training

        with record.step("read"):
            preparations = [
                evaluation.prepare(name, experiment.evaluation_reader)
                for name, evaluation in experiment.evaluations.items()
            ]
            training_text = experiment.distillation_reader.open() if training else None

        with record.step("load"):
            model_config = experiment.model.config(experiment.cache_path)
            experiment.pruner.check(model_config.get_text_config(decoder=True).num_hidden_layers, n)
            model = experiment.model.load(experiment.cache_path)
            experiment.patch.check(model.decoder)
            if training:
                training.check(model.decoder)
            if experiment.save_model and experiment.save_format == "plain" and name_of(experiment.patch) != "none":
                check_foldable(model.decoder)
        dense = model.decoder
        record.model = describe_model(experiment, model)

        with record.step("data"):
            blocks = _calibration_blocks(experiment, model)
            measurements = [one for prepare in preparations for one in prepare(model.tokenizer)]
            lessons = _training_blocks(experiment, training_text, model) if training_text else None
        record.calibration = describe_calibration(experiment, blocks)

        with record.step("rank"):
            workspace = Workspace(
                dense, blocks, cache=cache, model_key=model.key, batch_size=experiment.calibration.batch_size
            )
            workspace.collect(*experiment.pruner.statistics(n), *experiment.patch.statistics())
            selection = experiment.pruner.select(workspace, n)
            workspace.release()
        gaps = interfaces_of(selection.removed)
        log.info("removed layers %s: interfaces %s", list(selection.removed), [(g.start, g.end) for g in gaps])
        record.pruning = describe_pruning(experiment, dense, selection, gaps)

        with record.step("fit"):
            fitted = experiment.patch.fit(workspace, experiment.patch.place(gaps))
        record.patch = describe_patch(experiment, fitted)

        patches: dict[str, Patches] = {"dense": [], "pruned": [], "patched": [(p.site, p.module) for p in fitted]}
        if training and lessons:
            try:
                with record.step("distill"):
                    distilled = distill(
                        training, dense, selection.removed, patches["patched"], *lessons,
                        cache=cache, model_key=model.key, seed=experiment.seed, workers=workers,
                        report=lambda point: curve({f"distill/{name}": value for name, value in point.items()}),
                    )  # fmt: skip
            except TrainingFailed as error:
                if not workers.is_main:
                    raise
                record.distillation = describe_distillation(experiment, *lessons, error.distilled)
                kept = _keep_best(experiment, folder / "best_patch", model, selection, error.distilled, record)
                raise NumericsError(f"{error} {kept}") from error
            record.distillation = describe_distillation(experiment, *lessons, distilled)
            patches["distilled"] = distilled.patches

        stages = [stage for stage in experiment.stages if patches.get(stage) or stage in ("dense", "pruned")]
        keys = {stage: {"model": model.key, **_view_key(stage, selection.removed, patches[stage])} for stage in stages}
        subjects = {stage: _subject(stage, dense, selection.removed, patches[stage]) for stage in stages}
        for stage in stages:
            record.metrics.setdefault(stage, {})
            with record.step(f"evaluate {stage}"):
                for measurement in (one for one in measurements if not one.together):
                    _measure(measurement, [subjects[stage]], [keys[stage]], cache, record, answers)
        if together := [one for one in measurements if one.together]:
            with record.step("evaluate together"):
                for measurement in together:
                    _measure(measurement, list(subjects.values()), list(keys.values()), cache, record, answers)
        results = {
            stage: Results(metrics, answers.questions.get(stage, {})) for stage, metrics in record.metrics.items()
        }
        record.retained = _merged(record.retained, compare(results, experiment.evaluations), experiment.evaluations)

        if experiment.save_model:
            with record.step("save"):
                last = patches.get("distilled", patches["patched"])
                record.checkpoint = _save(experiment, folder / "model", model, selection, last, record)
    return record


def _calibration_blocks(experiment: Experiment, model: LoadedModel) -> TokenBlocks:
    spec = experiment.calibration.blocks(experiment.seed)
    return experiment.calibration_reader.read(spec, model.tokenizer)


def _training_blocks(experiment: Experiment, text: Text, model: LoadedModel) -> tuple[TokenBlocks, TokenBlocks]:
    """What patches are trained on, and what decides which are best."""
    spec = experiment.distillation.blocks(experiment.seed)
    blocks, validation = text.cut_apart(spec, model.tokenizer, experiment.distillation.validation_blocks)
    log.info(
        "distillation reads %d blocks of %d tokens from a text of %s", *blocks.ids.shape, f"{blocks.available:,} tokens"
    )
    return blocks, validation


def _subject(stage: str, dense: Decoder, removed: Sequence[int], patches: Patches) -> Subject:
    """The model of a stage; it shares the dense model's weights."""
    if stage == "dense":
        return Subject(stage, dense, dense)
    return Subject(stage, decoder_of(view_of(dense, removed, patches)), dense, tuple(removed))


def _view_key(stage: str, removed: Sequence[int], patches: Patches) -> dict[str, Any]:
    """What tells the model of a stage from the other models with the same weights."""
    if stage == "dense":
        return {"removed": [], "patches": None}
    if not patches:
        return {"removed": sorted(removed), "patches": None}
    sites = [asdict(site) for site, _ in patches]
    return {
        "removed": sorted(removed),
        "patches": [sites, parameter_hash([module for _, module in patches])],
    }


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
        metrics = [{name: asdict(metric) for name, metric in measured.metrics.items()} for measured in found]
        return Entry(tensors, {"metrics": metrics})

    key = {"models": list(keys), "evaluation": measurement.name, **measurement.key}
    entry = cache.get("evaluation", key, measure)
    for subject, metrics in zip(subjects, entry.facts["metrics"], strict=True):
        record.metrics.setdefault(subject.stage, {}).update(copy.deepcopy(metrics))  # the cache keeps its own
    for path, tensor in entry.tensors.items():
        index, kind, name = path.split("|")
        answers.add(subjects[int(index)].stage, kind, name, tensor)


def _merged(
    earlier: Mapping[str, Retained], found: Mapping[str, Retained], evaluations: Iterable[str]
) -> dict[str, Retained]:
    """What is retained, with the evaluations of this run in place of what an earlier one found."""
    merged: dict[str, Retained] = {}
    for stage, definitions in earlier.items():
        for definition, values in definitions.items():
            kept = {name: value for name, value in values.items() if name.partition("/")[0] not in evaluations}
            merged.setdefault(stage, {})[definition] = kept
    for stage, definitions in found.items():
        for definition, values in definitions.items():
            merged.setdefault(stage, {}).setdefault(definition, {}).update(values)
    return merged


def _keep_best(
    experiment: Experiment, folder: Path, model: LoadedModel, selection: Selection, distilled: Distilled, record: Record
) -> str:
    """Write the best patches of a training that failed, where any is better than the fitted ones; say where."""
    if distilled.best_step == 0:
        return "No step was better than the fitted patch."
    adapter = replace(experiment, save_format="adapter", push_to_hub=None)
    _save(adapter, folder, model, selection, distilled.patches, record)
    return f"The best patch is kept as an adapter: {folder}."


def _save(
    experiment: Experiment,
    folder: Path,
    model: LoadedModel,
    selection: Selection,
    patches: Patches,
    record: Record,
) -> dict[str, Any]:
    """Write the last stage's model, push it where asked, and say what was written."""
    settings = experiment.model
    manifest = save_checkpoint(
        folder,
        model,
        selection.removed,
        patches,
        save_format=experiment.save_format,
        name=settings.label,
        source=settings.origin,
        hub_id=settings.hub_id,
        license=settings.known_license,
        record=record,
    )
    address = push(folder, experiment.push_to_hub) if experiment.push_to_hub else None
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"folder": folder.name, "format": manifest.format, "bytes": size, "pushed_to": address}
