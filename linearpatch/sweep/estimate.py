"""What the jobs of a plan will roughly cost, told before anything is computed.

Time counts multiplications: two for each weight and token, at half the rate of a matrix product measured here and now.
It is right within a factor of two or three, which is enough to tell minutes from days.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from linearpatch.data.blocks import HELD_OUT_ONE_IN
from linearpatch.data.hub_access import offline
from linearpatch.errors import ConfigError, LinearPatchError
from linearpatch.experiment import Experiment, digest
from linearpatch.models.model import Model
from linearpatch.registry import identity, name_of
from linearpatch.sweep.feasibility import Feasibility
from linearpatch.sweep.plan import Job, Plan

log = logging.getLogger(__name__)

EFFICIENCY = 0.5  # of a matrix product's rate that a model reaches
START_S = 3.0  # of a job


@dataclass(frozen=True)
class Size:
    """A model's size.

    Attributes:
        parameters: All of them.
        layers: How many layers it has.
        hidden: Width of the stream.
        itemsize: Bytes of a weight.
        config: What this was read from.
    """

    parameters: int
    layers: int
    hidden: int
    itemsize: int
    config: Any = None


@dataclass(frozen=True)
class Estimate:
    """What a job costs, roughly.

    Attributes:
        seconds: Its time.
        memory: Bytes of a GPU's memory, or of the machine's.
        disk: Bytes that it writes.
    """

    seconds: float
    memory: int
    disk: int


def estimate(plan: Plan) -> tuple[Plan, Mapping[str, Estimate]]:
    """Estimates of the pending jobs by name, and the plan with those marked that turn out to be impossible.

    Jobs whose model's configuration isn't at hand have none.
    """
    sizes: dict[str, Size | None] = {}
    feasibility = Feasibility()
    rates: dict[int, float] = {}
    found: dict[str, Estimate] = {}
    refused: dict[str, LinearPatchError] = {}
    for job in plan.jobs:
        if not job.is_pending or job.experiment is None:
            continue
        experiment = job.experiment
        model = digest(identity(experiment.model))
        try:
            if model not in sizes:
                sizes[model] = size_of(experiment)
            size = sizes[model]
            if size is not None:
                experiment.check_model(size.config)
            feasibility.check(experiment)
            if size is None:
                continue
            if size.itemsize not in rates:
                rates[size.itemsize] = measured_rate(experiment.model, size.itemsize)
            found[job.name] = _estimate(job, experiment, size, rates[size.itemsize])
        except LinearPatchError as error:
            refused[job.name] = error
    jobs = tuple(replace(job, error=refused.get(job.name, job.error)) for job in plan.jobs)
    return replace(plan, jobs=jobs), found


def size_of(experiment: Experiment) -> Size | None:
    """A model's size from its configuration; None where that isn't on this machine: nothing is downloaded.

    Raises:
        LinearPatchError: the configuration can't be had anywhere, or not made.
    """
    model = experiment.model
    try:
        with offline():
            config = model.config(experiment.cache_path)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except ConfigError:
        raise
    except (LinearPatchError, OSError, ValueError) as error:
        if not may_be_downloaded(model):
            raise
        log.info("no estimates for %s: %s", model.label, error)
        return None
    text = config.get_text_config(decoder=True)
    dtype = getattr(torch, model.dtype) if model.dtype != "auto" else (getattr(config, "dtype", None) or torch.float32)
    return Size(parameters, text.num_hidden_layers, text.hidden_size, dtype.itemsize, config)


def may_be_downloaded(model: Model) -> bool:
    """Whether a model is named by an id of the hub, not by a place on this machine."""
    path = str(getattr(model, "path", ""))
    return bool(path) and not path.startswith((".", "/", "~")) and not Path(path).exists()


def measured_rate(model: Model, itemsize: int) -> float:
    """Multiplications and additions a second in a matrix product on the model's device."""
    device = model.resolved_device
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    matrix = torch.ones(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix).sum().item()
        best = min(best, time.perf_counter() - began)
        if best > 0.5:  # a dtype that the machine has no instructions for: nobody waits for a better figure
            break
    return 2 * 1024**3 / best


def _estimate(job: Job, experiment: Experiment, size: Size, rate: float) -> Estimate:
    part, n = job.request.part, experiment.num_pruned_layers
    calibration = _tokens(experiment.calibration)
    reader = experiment.evaluation_reader
    evaluation = sum(evaluation.rough_tokens(reader) for evaluation in experiment.evaluations.values())
    choosing = experiment.pruner.rough_cost(size.layers, n) * calibration
    choosing += experiment.pruner.rough_held_out_passes(size.layers, n) * _held_out_tokens(experiment)
    kept = 1 - n / size.layers  # of the layers
    alone = not job.needs
    tokens = 0.0
    if part == "statistics":
        tokens = calibration
    elif part == "dense":
        tokens = evaluation
    elif part == "pruned":
        tokens = choosing + kept * evaluation * ("pruned" in experiment.stages)
    else:
        stages = [stage for stage in experiment.asked_stages if stage in ("patched", "distilled") or alone]
        tokens = calibration + (calibration + choosing if alone else 0) + _comparing(experiment)
        tokens += evaluation * sum(1 if stage == "dense" else kept for stage in stages)
        tokens += 2 * _training_tokens(experiment)
    disk = 0
    training = experiment.training
    if training is not None and training.keeping is not None and part == "run":
        disk += _training_tokens(experiment) * training.keeping.bytes_per_token
    if experiment.save_model and part == "run":
        disk += int(kept * size.parameters * size.itemsize)
    activations = experiment.calibration.batch_size * experiment.calibration.block_length * size.hidden * 4 * 16
    grams = 3 * 8 * size.hidden**2
    memory = size.parameters * size.itemsize + activations + grams
    return Estimate(START_S + 2 * size.parameters * tokens / (EFFICIENCY * rate), int(memory), disk)


def _tokens(text: Any) -> int:
    return (text.num_blocks or 128) * int(text.block_length)


def _held_out_tokens(experiment: Experiment) -> int:
    spared = _tokens(experiment.calibration) // HELD_OUT_ONE_IN if experiment.spares_blocks else 0
    return experiment.num_held_out * experiment.calibration.block_length + spared


def _comparing(experiment: Experiment) -> int:
    """Tokens of a dense pass over what is held out, and of two halves: a fit and no patch; where no search did it."""
    if name_of(experiment.patch) == "none" or not experiment.patch.compare or experiment.pruner.sees_whole_patches:
        return 0
    return 2 * _held_out_tokens(experiment)


def _training_tokens(experiment: Experiment) -> int:
    training = experiment.training
    return _tokens(experiment.distillation) * training.epochs if training is not None else 0
