"""One experiment from top to bottom.

    texts, model, tokens -> layers to remove -> patches -> distillation -> evaluation -> checkpoint

Only this file sees the experiment: each step takes the values and components that it uses. The configuration stays in
`config.py`, the command line in `cli/`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as hf_logging

from linearpatch.budgets.budget import sizes_of
from linearpatch.calibration.comparison import repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.checks import check_target
from linearpatch.checkpoint.formats import formats_of
from linearpatch.checkpoint.hub import push
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.data.blocks import BlockSpec
from linearpatch.distillation.distill import distill
from linearpatch.distillation.distilled import Distilled, TrainingFailed
from linearpatch.distillation.helping import receive
from linearpatch.distillation.training import Training
from linearpatch.errors import NumericsError, StorageError
from linearpatch.evaluation.measure import measure
from linearpatch.experiment import Experiment
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.model import LoadedModel, Model
from linearpatch.patches.patch import Patch
from linearpatch.preparation import Prepared, Shared, Texts, check_planned, cut_calibration, cut_training, load_model
from linearpatch.registry import identity, name_of
from linearpatch.results.files import read_record
from linearpatch.results.questions import Answers
from linearpatch.results.record import Record
from linearpatch.results.recording import recording
from linearpatch.results.sections import CheckpointSection
from linearpatch.results.state import occupied
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.signals import Terminated
from linearpatch.selection import check_removable, rank
from linearpatch.storage.cache import Cache, digest_of
from linearpatch.storage.leftovers import tidied
from linearpatch.text import counted
from linearpatch.tracking.following import following

log = logging.getLogger(__name__)


def run(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    command: str = "",
    since: float | None = None,
    run_id: str | None = None,
    remark: str | None = None,
    shared: Shared | None = None,
) -> Record:
    """Prune, patch and measure a model. What the folder's record answers already isn't computed again.

    Args:
        experiment: What to do.
        folder: Where `result.json` and the log go; None takes the experiment's own.
        config: The configuration as plain values, for the record; None takes the experiment's fields.
        command: The command that repeats the run, for the record.
        since: With `force`, cached results from before (seconds since 1970) are recomputed; None is now.
        run_id: Name of the run; None takes the experiment's own.
        remark: What readers of the record should know.
        shared: What runs before it in this process have learnt; its record is the same with and without.

    Returns:
        The completed record. A run that fails leaves its record with the reason, and raises.
    """
    folder = folder or experiment.folder()
    run_id = run_id or experiment.run_id
    if not experiment.force and (done := completed(experiment, folder, run_id)):
        log.info("run %s is already complete; force=true recomputes it", run_id)
        return done
    if experiment.save_model:
        check_target(folder / "model")
    settings = {"choices": experiment.choices, **(config or asdict(experiment))}
    record = Record(run_id, experiment.group, command, experiment.seed, settings, remark=remark)
    workers = Workers.launched()
    if experiment.training:
        experiment.training.check_processes(workers.count)
    cache = shared.cache if shared else cache_of(experiment, since)
    if workers.is_main:
        with tidied([experiment.cache_path]):
            return _run(experiment, folder, record, cache, workers, shared)
    if experiment.training:
        help_training(experiment.training, experiment.model, cache, workers, experiment.cache_path)
    return record


def help_training(training: Training, model: Model, cache: Cache, workers: Workers, cache_dir: Path) -> None:
    """Train with the first process what that has fitted; this process has nothing else to do.

    Args:
        training: Loss and settings.
        model: The dense model's settings …
        cache: … and what all processes share.
        workers: They, and this one.
        cache_dir: Where converted models are.
    """
    hf_logging.disable_progress_bar()  # the first process shows that it loads
    hf_logging.set_verbosity_error()
    dense = (model.waiting if training.sharded else model).load(cache_dir).decoder
    given = receive(workers)
    try:
        distill(
            training, dense, given.edit, given.text, given.validation,
            cache=cache, model_key=given.model_key, seed=given.seed, workers=workers,
        )  # fmt: skip
    except (TrainingFailed, Terminated):
        log.info("the first process says why the training ended")


def cache_of(experiment: Experiment, since: float | None = None) -> Cache:
    """The cache of a run; with `force` what is older than that (seconds since 1970; None: now) isn't taken."""
    return Cache(experiment.cache_path, since=(since or time.time()) if experiment.force else None)


def completed(experiment: Experiment, folder: Path, run_id: str) -> Record | None:
    """The record of a run that completed with all that is asked for, or None."""
    try:
        record = read_record(folder)
    except StorageError:
        return None  # the run itself will say what is wrong with it
    if record is None or record.run_id != run_id or record.status != "completed":
        return None
    if experiment.save_model and not (folder / "model").is_dir():
        return None
    answers_all = all(record.answered.get(what) == digest for what, digest in experiment.required_results.items())
    return record if answers_all else None


def _run(
    experiment: Experiment, folder: Path, record: Record, cache: Cache, workers: Workers, shared: Shared | None = None
) -> Record:
    """The story: each stage is an edit of the dense model, made of the one before it."""
    with (
        occupied(folder),
        following(experiment.trackers, record, folder) as start_trackers,  # ended when the record is on disk
        recording(record, folder) as is_addition,
        Answers(folder, only_if_whole=is_addition) as answers,
    ):
        curve = start_trackers()
        prepared = prepare(experiment, record, cache, shared=shared)
        dense = prepared.model.decoder
        experiment = experiment.for_model(dense)
        edits = {"dense": DENSE}

        with record.step("rank"):
            workspace = workspace_of(experiment, prepared, cache, shared)
            size = size_of(experiment, workspace, record)
            edits["pruned"] = rank(experiment.pruner, experiment.patch, workspace, size)
        record.pruning = experiment.pruner.chooser.section(dense, edits["pruned"])
        check_removable(dense, edits["pruned"], experiment.format)

        if experiment.training:
            experiment.training.check_edit(dense, edits["pruned"])

        with record.step("fit"):
            edits["patched"] = fit(experiment.patch, prepared.model, workspace, edits["pruned"], record)

        if experiment.training and prepared.lessons:
            with record.step("distill"):
                try:
                    distilled = distill(
                        experiment.training, dense, edits["patched"], *prepared.lessons,
                        cache=cache, model_key=prepared.model.key, seed=experiment.seed, workers=workers,
                        report=lambda point: curve({f"distill/{name}": value for name, value in point.items()}),
                    )  # fmt: skip
                except TrainingFailed as error:
                    if not workers.is_main:
                        raise
                    record.distillation = error.distilled.section(experiment.training, *prepared.lessons)
                    kept = keep_best(error.distilled, folder / "best_patch", prepared.model, experiment.model, record)
                    raise NumericsError(f"{error} {kept}") from error
            record.distillation = distilled.section(experiment.training, *prepared.lessons)
            edits["distilled"] = distilled.edit

        stages = {stage: edits[stage] for stage in experiment.measured_stages}
        measure(prepared.model, stages, experiment.evaluations, prepared.measurements, cache, record, answers)

        if experiment.save_model:
            with record.step("save"):
                last = edits.get("distilled", edits["patched"])
                record.checkpoint = save(
                    folder / "model", prepared.model, last, experiment.model, experiment.save_format, record,
                    gguf_type=experiment.gguf_type, push_to=experiment.push_to_hub,
                )  # fmt: skip
        record.answered |= experiment.required_results
    return record


def prepare(
    experiment: Experiment,
    record: Record,
    cache: Cache,
    *,
    sized_for: Patch | None = None,
    shared: Shared | None = None,
) -> Prepared:
    """Read the texts, load the model, generate the texts that it is to write, cut the tokens.

    Args:
        experiment: The run.
        record: Its record.
        cache: Keeps what the model generates.
        sized_for: The patch whose fit decides how much text there is with `calibration.num_blocks=auto`; None: the
            experiment's own.
        shared: Of runs with the same model and tokens: the first prepares for all.
    """
    training = experiment.training
    experiment.check_model(experiment.model.config(experiment.cache_path))
    if shared is not None and shared.prepared is not None:
        record.model, record.calibration = shared.model, shared.calibration
        model = shared.prepared.model
        check_planned(model, experiment.patch, training, experiment.format, mixed_layers=experiment.has_mixed_layers)
        return shared.prepared
    with record.step("read"):
        texts = Texts.read(
            experiment.calibration_reader,
            experiment.distillation_reader if training else None,
            experiment.evaluation_reader,
            experiment.evaluations,
        )
        questions = experiment.pruner.questions(experiment.calibration_reader.datasets_dir)
    with record.step("load"):
        model = load_model(
            experiment.model,
            experiment.cache_path,
            patch=experiment.patch,
            training=training,
            save_format=experiment.format,
            mixed_layers=experiment.has_mixed_layers,
        )
    record.model = model.section(experiment.model.label, experiment.model.note)
    spec, num_held_out = _calibration_blocks(experiment, sized_for or experiment.patch, model), experiment.num_held_out
    training_cut = experiment.distillation.blocks(experiment.seed), experiment.distillation.validation_blocks
    if texts.are_deferred:
        with record.step("generate"):
            texts = texts.generated(model, cache, (spec, num_held_out or None), training_cut)
    with record.step("data"):
        calibration = cut_calibration(
            texts.calibration,
            model,
            spec,
            num_held_out=num_held_out,
            spare=experiment.spares_blocks,
            is_patched=name_of(experiment.patch) != "none",
            num_copies=experiment.calibration.held_out_copies,
        )
        measurements = [one for prepare_one in texts.evaluations for one in prepare_one(model, cache)]
        lessons = None
        if texts.training:
            lessons = cut_training(texts.training, model, *training_cut)
    record.calibration = calibration.section(texts.notes)
    asked = questions.tokenized(model.tokenizer) if questions else None
    prepared = Prepared(model, calibration, lessons, measurements, asked)
    if shared is not None:
        shared.keep(prepared, record)
    return prepared


def _calibration_blocks(experiment: Experiment, patch: Patch, model: LoadedModel) -> BlockSpec:
    patch = patch.for_model(model.decoder)
    unknowns = patch.unknowns(model.decoder)
    spec = experiment.calibration_blocks(unknowns)
    if experiment.calibration.is_sized_by_patch:
        assert spec.num_blocks is not None
        log.info(
            "calibration.num_blocks=auto: %s of %d tokens, %.3g for each of the %s of patch=%s",
            counted(spec.num_blocks, "block"), spec.block_length, spec.num_blocks * spec.block_length / unknowns,
            counted(unknowns, "unknown"), name_of(patch),
        )  # fmt: skip
    return spec


def workspace_of(experiment: Experiment, prepared: Prepared, cache: Cache, shared: Shared | None = None) -> Workspace:
    """What pruners and patches may ask of the dense model."""
    if shared is not None:
        return shared.workspace(recipe_key(experiment), lambda: workspace_of(experiment, prepared, cache))
    return Workspace(
        prepared.model.decoder,
        prepared.calibration.blocks,
        held_out=prepared.calibration.held_out,
        patch=experiment.patch,
        cache=cache,
        model_key=prepared.model.key,
        batch_size=experiment.calibration.batch_size,
        offload_streams=experiment.calibration.offload_streams,
        questions=prepared.questions,
    )


def recipe_key(experiment: Experiment) -> str:
    """What runs that share a workspace have in common beside the model and the tokens: pruner and patch."""
    return digest_of({"pruner": identity(experiment.pruner), "patch": identity(experiment.patch)})


def size_of(experiment: Experiment, workspace: Workspace, record: Record) -> int:
    """How many layers go: the number that was given, or what the budget leaves.

    What a budget measured is in the cache and the workspace, so that the run computes nothing of it again.

    Raises:
        ConfigError: no number of layers is within the budget.
    """
    if experiment.limit is None:
        assert experiment.num_units is not None  # checked by the experiment
        return experiment.num_units
    pruner, patch = experiment.pruner, experiment.patch

    def patched(n: int) -> Edit:
        return repair(workspace, patch, rank(pruner, patch, workspace, n)).edit

    sizes = sizes_of(pruner, workspace.num_layers)
    record.budget = experiment.limit.resolve(workspace, sizes, patched)
    return record.budget.num_pruned_layers


def fit(patch: Patch, model: LoadedModel, workspace: Workspace, pruned: Edit, record: Record) -> Edit:
    """Repair the interfaces, and note which formats can hold the result."""
    repaired = repair(workspace, patch, pruned)
    workspace.release()
    record.patch = replace(repaired.section(patch), formats=formats_of(model, repaired.edit))
    for warning in record.patch.warnings:
        log.warning("%s", warning)
    return repaired.edit


def keep_best(distilled: Distilled, folder: Path, model: LoadedModel, settings: Model, record: Record) -> str:
    """Write the best patches of a training that failed, where any is better than the fitted ones; say where."""
    if distilled.best_step == 0:
        return "No step was better than the fitted patch."
    save(folder, model, distilled.edit, settings, "adapter", record)
    return f"The best patch is kept as an adapter: {folder}."


def save(
    folder: Path,
    model: LoadedModel,
    edit: Edit,
    settings: Model,
    save_format: str,
    record: Record,
    *,
    gguf_type: str = "auto",
    push_to: str | None = None,
) -> CheckpointSection:
    """Write an edited model as a checkpoint.

    Args:
        folder: Where to.
        model: The dense model …
        edit: … and what is changed of it.
        settings: Those that the dense model was loaded by: its name and its origin.
        save_format: See `checkpoint.saving.save_checkpoint`.
        record: For the model card and as provenance.
        gguf_type: See `checkpoint.saving.save_checkpoint`.
        push_to: Repository on the hub that gets a copy; None: none.
    """
    manifest = save_checkpoint(
        folder,
        model,
        edit,
        save_format=save_format,
        gguf_type=gguf_type,
        name=settings.label,
        source=settings.origin,
        hub_id=settings.hub_id,
        license=settings.known_license,
        record=record,
    )
    address = push(folder, push_to) if push_to else None
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return CheckpointSection(folder.name, manifest.format, size, address)
