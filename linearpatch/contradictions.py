"""Settings of an experiment that contradict each other, or that no run can have."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from linearpatch.budgets.budget import check_size
from linearpatch.checkpoint.checks import check_format, check_gguf_type
from linearpatch.checkpoint.gguf.writing import TYPES
from linearpatch.checkpoint.hub import check_repository
from linearpatch.data.reader import check_disjoint
from linearpatch.errors import ConfigError, check_group, looked_in, require_choice, require_path, require_seed
from linearpatch.evaluation.evaluation import check_metrics, check_stock
from linearpatch.evaluation.harness.task_settings import MISSING_DATA
from linearpatch.registry import name_of
from linearpatch.results.stages import STAGES
from linearpatch.tracking.tracker import check_trackers

if TYPE_CHECKING:
    from linearpatch.experiment import Experiment


def check_settings(experiment: Experiment) -> None:
    """Reject what its components can't see alone, before anything is loaded.

    Raises:
        ConfigError: with the settings, and what to change.
    """
    for stage in experiment.stages:
        require_choice("stages", stage, STAGES)
    if not experiment.stages:
        raise ConfigError(f"stages is empty. Allowed: some of {', '.join(STAGES)}.")
    check_size(experiment.num_pruned_layers, experiment.num_pruned, experiment.budget)
    _ = experiment.num_units  # rejects a number of another unit
    require_seed("seed", experiment.seed)
    check_group(experiment.group)
    check_trackers(experiment.tracker)
    _check_folders(experiment)
    _check_checkpoint(experiment)
    _check_training(experiment)
    experiment.pruner.check_rest(name_of(experiment.patch), experiment.format or "auto")
    _check_measurements(experiment)
    _check_text(experiment)


def _check_folders(experiment: Experiment) -> None:
    for key in ("output_dir", "datasets_dir", "cache_dir"):
        if (folder := getattr(experiment, key)) is not None:
            require_path(key, folder)
            if not folder.strip():
                raise ConfigError(f"{key} is empty. Name a folder, or leave {key} out.")
    if experiment.datasets_dir is not None and not Path(experiment.datasets_dir).expanduser().is_dir():
        raise ConfigError(
            f"datasets_dir={experiment.datasets_dir} is not a folder{looked_in(experiment.datasets_dir)}."
        )


def _check_checkpoint(experiment: Experiment) -> None:
    require_choice("gguf_type", experiment.gguf_type, TYPES)
    check_gguf_type(experiment.gguf_type, experiment.save_format)
    trainable = experiment.training.trainable if experiment.training else None
    check_format(experiment.save_format, experiment.patch, trainable=trainable, unit=experiment.pruner.unit)
    if experiment.push_to_hub is not None:
        if not experiment.save_model:
            raise ConfigError(f"push_to_hub={experiment.push_to_hub} needs a checkpoint to push: set save_model=true.")
        check_repository(experiment.push_to_hub)


def _check_training(experiment: Experiment) -> None:
    training = experiment.training
    if training is None:
        if set(experiment.stages) == {"distilled"}:
            raise ConfigError("stages=[distilled] needs a distillation, and distill is none. Use distill=output_kl.")
        return
    distill, patch = name_of(experiment.distill), name_of(experiment.patch)
    if training.trainable == "patch" and patch == "none":
        raise ConfigError(
            f"distill={distill} trains patches, and patch=none has none. Choose a patch to begin with, such as "
            "rotate or lstsq, train weights of the model as well, as distill.trainable=lora does, or use "
            "distill=none."
        )
    training.check_unit(experiment.pruner.unit)
    if training.patch_form != "full" and not experiment.patch.is_matrix:
        raise ConfigError(
            f"distill.patch_form={training.patch_form} trains a part of one matrix, and this patch={patch} "
            "isn't one (patch.features, patch.form). Use distill.patch_form=full."
        )
    if "distilled" not in experiment.stages and not experiment.save_model:
        raise ConfigError(
            f"distill={distill} would have no effect: stages={list(experiment.stages)} leaves out the distilled model, "
            "and it isn't saved. Add distilled to stages, set save_model=true, or distill=none."
        )


def _check_measurements(experiment: Experiment) -> None:
    require_choice("missing_data", experiment.missing_data, MISSING_DATA)
    check_metrics(experiment.evaluations, experiment.evaluation_reader)
    check_stock(experiment.evaluations, experiment.measured_stages, foldable=experiment.patch.foldable)


def _check_text(experiment: Experiment) -> None:
    num_held_out = experiment.num_held_out  # rejects settings that leave none where some are needed
    copies = experiment.calibration.held_out_copies
    if copies and not num_held_out and not experiment.spares_blocks:
        raise ConfigError(
            f"calibration.held_out_copies={copies} repeats passages of held-out blocks, and this run holds none out. "
            "Set calibration.held_out_blocks to at least as many, such as 6, or calibration.held_out_copies=0."
        )
    for first, second in combinations(experiment.readers, 2):
        if (first.purpose, second.purpose) != ("evaluation", "evaluation"):
            check_disjoint(first, second)
