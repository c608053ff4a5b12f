"""One experiment from top to bottom.

    load -> token blocks -> ranking pass -> removed layers -> fit pass -> patches -> distillation
    -> views -> evaluation -> checkpoint

Everything here takes values; the configuration stays in `config.py`, the command line in `cli.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from linearpatch.calibration.comparison import repair
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.hub import push
from linearpatch.checkpoint.saving import check_foldable, check_target, save_checkpoint
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
from linearpatch.errors import NumericsError, StorageError
from linearpatch.evaluation.evaluation import Measurement
from linearpatch.evaluation.measure import measure
from linearpatch.experiment import Experiment
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import DENSE, Edit, interfaces_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.rebuilding import check_rebuilt, check_removal
from linearpatch.pruners.pruner import Selection
from linearpatch.registry import name_of
from linearpatch.results.questions import Answers
from linearpatch.results.record import Record, read_record, recording
from linearpatch.results.state import occupied
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.signals import Terminated
from linearpatch.storage.cache import Cache
from linearpatch.storage.leftovers import tidied
from linearpatch.text import counted
from linearpatch.tracking.tracker import NoTracker

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
) -> Record:
    """Prune, patch and measure a model. What the folder's record answers already isn't done again.

    Args:
        experiment: What to do.
        folder: Where `result.json` and the log go; None takes the experiment's own.
        config: The configuration as plain values, for the record; None takes the experiment's fields.
        command: The command that repeats the run, for the record.
        since: With `force`, cached results from before (seconds since 1970) are computed anew; None is now.
        run_id: Name of the run; None takes the experiment's own.
        remark: What readers of the record should know.

    Returns:
        The completed record. A run that fails leaves its record with the reason, and raises.
    """
    folder = folder or experiment.folder()
    run_id = run_id or experiment.run_id
    if not experiment.force and (done := completed(experiment, folder, run_id)):
        log.info("run %s is complete already; force=true repeats it", run_id)
        return done
    settings = {"choices": experiment.choices, **(config or asdict(experiment))}
    record = Record(run_id, experiment.group, command, experiment.seed, settings, remark=remark)
    workers = Workers.launched()
    if experiment.training:
        experiment.training.check_processes(workers.count)
    cache = Cache(experiment.cache_path, since=(since or time.time()) if experiment.force else None)
    if workers.is_main:
        with tidied([experiment.cache_path]):
            return _run(experiment, folder, record, cache, workers)
    with TemporaryDirectory() as scratch:  # helps with the distillation; there is nothing else to do or to tell
        helping = replace(experiment, eval={}, save_model=False, push_to_hub=None, tracker=NoTracker())
        try:
            return _run(helping, Path(scratch), record, cache, workers)
        except (TrainingFailed, Terminated):  # the first process has it, too, and tells
            return record


def completed(experiment: Experiment, folder: Path, run_id: str) -> Record | None:
    """The record of a run that completed with all that is asked for, or None."""
    try:
        record = read_record(folder)
    except StorageError:
        return None  # running says what is wrong with it
    if record is None or record.run_id != run_id or record.status != "completed":
        return None
    if experiment.save_model and not (folder / "model").is_dir():
        return None
    answers_all = all(record.answered.get(what) == digest for what, digest in experiment.asked.items())
    return record if answers_all else None


def _run(experiment: Experiment, folder: Path, record: Record, cache: Cache, workers: Workers) -> Record:
    with (
        occupied(folder),
        recording(record, folder) as is_addition,
        experiment.tracker.follow(record, folder) as curve,
        Answers(folder, only_if_whole=is_addition) as answers,
    ):
        if experiment.save_model:
            check_target(folder / "model")
        opened = prepare(experiment, record)
        dense, model_key, lessons = opened.model.decoder, opened.model.key, opened.lessons

        with record.step("rank"):
            workspace = opened.workspace(experiment, cache)
            selection = rank(experiment, workspace, record)
        pruned = Edit.of_layers(selection.removed)
        check_removable(experiment, dense, pruned)

        with record.step("fit"):
            repaired = repair(workspace, experiment.patch, pruned)
            workspace.release()
        for warning in repaired.warnings(name_of(experiment.patch)):
            log.warning("%s", warning)
        record.patch = describe_patch(experiment, repaired)

        edits = {"dense": DENSE, "pruned": pruned, "patched": repaired.edit}
        if experiment.training and lessons:
            try:
                with record.step("distill"):
                    distilled = distill(
                        experiment.training, dense, edits["patched"], *lessons,
                        cache=cache, model_key=model_key, seed=experiment.seed, workers=workers,
                        report=lambda point: curve({f"distill/{name}": value for name, value in point.items()}),
                    )  # fmt: skip
            except TrainingFailed as error:
                if not workers.is_main:
                    raise
                record.distillation = describe_distillation(experiment, *lessons, error.distilled)
                kept = _keep_best(experiment, folder / "best_patch", opened.model, error.distilled, record)
                raise NumericsError(f"{error} {kept}") from error
            record.distillation = describe_distillation(experiment, *lessons, distilled)
            edits["distilled"] = distilled.edit

        stages = {
            stage: edits[stage]
            for stage in experiment.stages
            if stage in ("dense", "pruned") or (stage in edits and edits[stage].operators)
        }
        measure(opened.model, stages, experiment.evaluations, opened.measurements, cache, record, answers)

        if experiment.save_model:
            with record.step("save"):
                last = edits.get("distilled", edits["patched"])
                record.checkpoint = _save(experiment, folder / "model", opened.model, last, record)
        record.answered |= experiment.asked
    return record


@dataclass(frozen=True)
class Opened:
    """The model and the texts of an experiment.

    Attributes:
        model: The dense model.
        blocks: Calibration tokens.
        held_out: More of them, on which nothing is fitted; None where nothing is chosen on them.
        lessons: What patches are trained on, and what decides which are best; None without distillation.
        measurements: All that is to be measured.
    """

    model: LoadedModel
    blocks: TokenBlocks
    held_out: TokenBlocks | None
    lessons: tuple[TokenBlocks, TokenBlocks] | None
    measurements: Sequence[Measurement]

    def workspace(self, experiment: Experiment, cache: Cache) -> Workspace:
        """What pruners and patches may ask."""
        return Workspace(
            self.model.decoder,
            self.blocks,
            held_out=self.held_out,
            patch=experiment.patch,
            cache=cache,
            model_key=self.model.key,
            batch_size=experiment.calibration.batch_size,
            offload_streams=experiment.calibration.offload_streams,
        )


def prepare(experiment: Experiment, record: Record) -> Opened:
    """Read the texts, load the model and refuse what can't be done with it; then cut tokens."""
    training = experiment.training
    with record.step("read"):
        experiment.check_model(experiment.model.config(experiment.cache_path))
        preparations = [
            evaluation.prepare(name, experiment.evaluation_reader)
            for name, evaluation in experiment.evaluations.items()
        ]
        calibration_text = experiment.calibration_reader.open()
        training_text = experiment.distillation_reader.open() if training else None

    with record.step("load"):
        model = experiment.model.load(experiment.cache_path)
        experiment.patch.check(model.decoder)
        if training:
            training.check(model.decoder)
        if experiment.save_model and experiment.save_format == "plain" and name_of(experiment.patch) != "none":
            check_foldable(model.decoder)
    record.model = describe_model(experiment, model)

    with record.step("data"):
        blocks, held_out = _calibration_blocks(experiment, calibration_text, model)
        doubts = calibration_text.look(blocks, experiment.calibration.blocks(experiment.seed), model.tokenizer)
        measurements = [one for prepare in preparations for one in prepare(model.tokenizer)]
        lessons = _training_blocks(experiment, training_text, model) if training_text else None
    for doubt in doubts:
        log.warning("%s", doubt)
    record.calibration = {**describe_calibration(experiment, blocks, held_out), "warnings": doubts}
    return Opened(model, blocks, held_out, lessons, measurements)


def rank(experiment: Experiment, workspace: Workspace, record: Record) -> Selection:
    """Choose the layers that go."""
    n = experiment.num_pruned_layers
    workspace.collect(*experiment.pruner.dense_statistics(n), *experiment.patch.statistics())
    selection = experiment.pruner.choose(workspace, n)
    workspace.release()
    gaps = interfaces_of(selection.removed)
    log.info("removed layers %s: interfaces %s", list(selection.removed), [(gap.start, gap.end) for gap in gaps])
    record.pruning = describe_pruning(experiment, workspace.decoder, selection, gaps)
    return selection


def check_removable(experiment: Experiment, dense: Decoder, edit: Edit) -> None:
    """Reject, before the long work, layers whose removal would change others, or that couldn't be saved as asked.

    Raises:
        ModelError: says which, and what works instead.
    """
    pruned = edit.view(dense)
    check_removal(dense, pruned, edit.removed_layers)
    if experiment.save_model and experiment.save_format != "adapter":
        check_rebuilt(dense, pruned, edit.removed_layers)


def _calibration_blocks(
    experiment: Experiment, text: Text, model: LoadedModel
) -> tuple[TokenBlocks, TokenBlocks | None]:
    """What layers are chosen and patches fitted with, and what decides between some that were."""
    spec = experiment.calibration.blocks(experiment.seed)
    if experiment.num_held_out:
        return text.cut_apart(spec, model.tokenizer, experiment.num_held_out)
    if not experiment.spares_blocks:
        return text.cut(spec, model.tokenizer), None
    blocks, held_out = text.cut_beside(spec, model.tokenizer)
    number = len(blocks.ids)
    if held_out is None and name_of(experiment.patch) != "none":
        log.warning(
            "%s has no tokens to spare beside the %s of calibration: nothing is held out, and nobody knows whether the "
            "patch does harm. Give it more text.", blocks.source, counted(number, "block"),
        )  # fmt: skip
    if experiment.calibration.num_blocks not in (None, number):
        log.info("%s: %s for calibration, since some must be held out", blocks.source, counted(number, "block"))
    return blocks, held_out


def _training_blocks(experiment: Experiment, text: Text, model: LoadedModel) -> tuple[TokenBlocks, TokenBlocks]:
    """What patches are trained on, and what decides which are best."""
    spec = experiment.distillation.blocks(experiment.seed)
    blocks, validation = text.cut_apart(spec, model.tokenizer, experiment.distillation.validation_blocks)
    read, length = counted(len(blocks.ids), "block"), blocks.ids.shape[1]
    log.info("distillation reads %s of %d tokens from a text of %s tokens", read, length, f"{blocks.available:,}")
    return blocks, validation


def _keep_best(
    experiment: Experiment,
    folder: Path,
    model: LoadedModel,
    distilled: Distilled,
    record: Record,
) -> str:
    """Write the best patches of a training that failed, where any is better than the fitted ones; say where."""
    if distilled.best_step == 0:
        return "No step was better than the fitted patch."
    adapter = replace(experiment, save_format="adapter", push_to_hub=None)
    _save(adapter, folder, model, distilled.edit, record)
    return f"The best patch is kept as an adapter: {folder}."


def _save(
    experiment: Experiment,
    folder: Path,
    model: LoadedModel,
    edit: Edit,
    record: Record,
) -> dict[str, Any]:
    """Write the last stage's model, push it where asked, and say what was written."""
    settings = experiment.model
    manifest = save_checkpoint(
        folder,
        model,
        edit,
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
