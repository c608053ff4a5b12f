"""From an edited model to a trained one: the student, where its lessons come from, and what is kept of it all."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation.helping import Assignment, send
from linearpatch.distillation.loop import Diverged, Loop
from linearpatch.distillation.patch_forms import (
    DiagonalPatch,
    FullPatch,
    LowRankPatch,
    OperatorPatch,
    TrainablePatch,
    dense_form,
)
from linearpatch.distillation.range_test import RATES, best_rate
from linearpatch.distillation.sharding import gathered, sharded
from linearpatch.distillation.sources import SHARD, Cached, Online, Source
from linearpatch.distillation.training import Keeping, Training
from linearpatch.errors import ConfigError, ModelError, StorageError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.gradients import gradients_for
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap, Operator, operator_from
from linearpatch.models.offload import parked
from linearpatch.models.runner import Runner
from linearpatch.models.weight_changes import describe_weights, tensors_of, weights_from
from linearpatch.registry import identity, name_of
from linearpatch.results.fields import section_of
from linearpatch.results.sections import DistillationSection, PointSection
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.memory import peak_memory
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Cache, Entry, digest_of
from linearpatch.storage.files import make_folder

log = logging.getLogger(__name__)

WEIGHTS = "weight."  # how names of changed weights' tensors begin in a cached result


@dataclass(frozen=True)
class Distilled:
    """An edited model after training.

    Attributes:
        edit: With the operators and weights that have the lowest validation loss.
        history: What was measured on the way; see `Loop.history`.
        num_steps: Steps done.
        best_step: After which of them the validation loss was lowest; 0 is the model before training.
        num_trained: Numbers that training moved.
        num_tokens: Tokens that were trained on, as often as each was.
        learning_rate: At the beginning.
        seconds: Spent on steps and validation.
        peak_memory_bytes: Of the process, or on its GPU, at most.
    """

    edit: Edit
    history: Sequence[Mapping[str, float]]
    num_steps: int
    best_step: int
    num_trained: int
    num_tokens: int
    learning_rate: float
    seconds: float
    peak_memory_bytes: int

    def section(self, training: Training, text: TokenBlocks, validation: TokenBlocks) -> DistillationSection:
        """Settings and results of the training, for the record."""
        losses = {int(point["step"]): point["validation_loss"] for point in self.history if "validation_loss" in point}
        return DistillationSection(
            method=name_of(training),
            num_parameters=self.edit.num_added_parameters,
            best_step=self.best_step,
            settings={**identity(training), "corpus": text.source},
            num_blocks=len(text.ids),
            block_length=text.ids.shape[1],
            token_hash=text.hash,
            text_tokens=text.available or 0,
            validation={"num_blocks": len(validation.ids), "token_hash": validation.hash},
            num_trained=self.num_trained,
            num_tokens=self.num_tokens,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            seconds=self.seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            validation_loss={"first": losses.get(0), "best": losses.get(self.best_step)},
            curve=[section_of(PointSection, {**point, "step": int(point["step"])}) for point in self.history],
        )


class TrainingFailed(Diverged):
    """A loss that isn't finite any more, with the best weights up to then.

    Attributes:
        distilled: What was reached.
    """

    def __init__(self, cause: Diverged, distilled: Distilled) -> None:
        super().__init__(str(cause))
        self.distilled = distilled


def distill(
    training: Training,
    decoder: Decoder,
    edit: Edit,
    text: TokenBlocks,
    validation: TokenBlocks,
    *,
    cache: Cache | None = None,
    model_key: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: Workers | None = None,
    report: Callable[[Mapping[str, float]], None] = lambda point: None,
) -> Distilled:
    """Train fitted patches, and other weights where the training says so, against the dense model.

    A training that was interrupted resumes from its last saved state, and one that was finished is read from the
    cache.

    Args:
        training: Loss and settings.
        decoder: The dense model; never changed.
        edit: What is removed, and the fitted operators.
        text: What is trained on.
        validation: What decides which step is best.
        cache: Where results, states and targets are kept; by default in memory.
        model_key: What identifies the dense model (`LoadedModel.key`).
        seed: Of the order of the sequences.
        workers: Processes that share the work. The first one tells the others what to train, who call this with what
            they `helping.receive`; with `sharded` the result is complete in the first one alone.
        report: Called with every new point of the history.

    Raises:
        ConfigError: there is nothing to train, or an operator that isn't known.
        TrainingFailed: a loss isn't finite.
        Terminated: there was a request to stop; the state is saved.
    """
    cache, workers = cache or Cache(), workers or Workers()
    model_key = dict(model_key or {"weights": weights_hash(decoder.model)})
    operators = _operators(edit)
    if workers.count > 1 and workers.is_main:
        send(Assignment(edit, text, validation, model_key, seed), workers)
    key = {
        "model": model_key,
        "edit": edit.identity(),
        "text": [text.hash, validation.hash],
        "training": identity(training),
        "seed": seed,
    }
    training.check_processes(workers.count)
    frozen = gradients_for(list(decoder.model.parameters()), False)
    with cache.locked("distillation", key) if workers.is_main else nullcontext(), frozen:
        workers.wait()
        finished = cache.find("distillation", key)
        if not workers.agree(f"{digest_of(key)} {finished is None}"):
            raise StorageError(
                "The processes of this run don't train the same model, or don't share a cache. Give all of them the "
                "same command, and a cache_dir that all can read."
            )
        if finished is None:

            def trained() -> Entry:  # what it needs meanwhile is released when it ends
                student = _student(training, decoder, edit, operators, seed, workers)
                _check_alike(student, workers)
                state = cache.find("distillation_state", key, remember=False)
                source = _source(training, student, torch.cat([text.ids, validation.ids]), cache, model_key, workers)

                def loop_of(settings: Training) -> Loop:
                    return Loop(settings, student, source, len(validation.ids), seed=seed, workers=workers)

                return _train(loop_of(_with_rate(training, loop_of, state)), state, edit, cache, key, report)

            with parked(decoder.model) if training.sharded else nullcontext():
                workers.wait()  # until all devices have room
                finished = trained()
            if workers.is_main:
                cache.put("distillation", key, finished)
        else:
            for point in finished.facts["history"]:
                report(point)
        workers.wait()
        if workers.is_main:
            cache.remove("distillation_state", key)
    distilled = _distilled(finished, edit)
    if distilled.best_step == 0:
        log.warning(
            "distill: no step improved the fitted model, which is kept. Use another distill.learning_rate (now %g) or "
            "more text.",
            distilled.learning_rate,
        )
    return distilled


def _operators(edit: Edit) -> list[Operator]:
    """Operators with a spec, so that what becomes of them can be kept; others are rejected."""
    operators = [placed.module for placed in edit.operators]
    unknown = [type(operator).__name__ for operator in operators if not isinstance(operator, Operator)]
    if unknown:
        raise ConfigError(
            f"A {unknown[0]} can't be distilled: it has no spec, so the trained operator couldn't be saved. Derive it "
            "from linearpatch.models.modeling_linearpatch.Operator (docs/extending.md)."
        )
    return [operator for operator in operators if isinstance(operator, Operator)]


def _student(
    training: Training, decoder: Decoder, edit: Edit, operators: Sequence[Operator], seed: int, workers: Workers
) -> Runner:
    """The edited model with patches and weights that train; its beginning is the edited model itself."""
    weights = training.trainable_set.weights(decoder, edit, seed, anywhere=training.sharded)
    weights = {name: change for name, change in weights.items() if training.sees(decoder, name) or name in edit.weights}
    own = workers.device if training.sharded else None
    readers = [placed.place.runs_with(set(edit.removed_layers)) for placed in edit.operators]
    patches = [
        _trainable(training, operator, decoder.hidden_size, own or decoder.reading_device(reader), seed + index)
        for index, (operator, reader) in enumerate(zip(operators, readers, strict=True))
    ]
    student = Runner(decoder, edit.with_modules(patches).with_weights(weights), training.recompute)
    training.check_student(student)
    return student if own is None else sharded(student, own)


def _check_alike(student: Runner, workers: Workers) -> None:
    """Make sure that all processes train the same weights: gradients of others would be summed wrongly, or never.

    Raises:
        ModelError: they don't.
    """
    modules: dict[str, nn.Module] = {str(name): change for name, change in student.edit.weights.items()}
    modules |= {str(index): placed.module for index, placed in enumerate(student.edit.operators)}
    trained = [
        [name, part, list(parameter.shape)]
        for name, module in modules.items()
        for part, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    if not workers.agree(json.dumps(trained)):
        raise ModelError(
            f"The processes of this run would train different weights of {type(student.decoder.model).__name__}: it "
            "was loaded in another way in the first. Give all of them the same model.path and versions of packages, "
            "or use distill.trainable=lora or distill.sharded=false."
        )


def _trainable(
    training: Training, operator: Operator, hidden_size: int, device: torch.device, seed: int
) -> TrainablePatch:
    """A fitted operator in the form in which it trains.

    Args:
        training: Says which form that is.
        operator: As it was fitted.
        hidden_size: Width of the stream.
        device: Where its reader is.
        seed: Of what begins at random.
    """
    is_matrix = isinstance(operator, LinearMap | ChannelScale)
    if training.patch_form == "full" and not is_matrix:
        return OperatorPatch(copy.deepcopy(operator).to(device), around_start=training.decays_to_start)
    matrix, bias = dense_form(operator, hidden_size)
    matrix, bias = matrix.to(device), None if bias is None else bias.to(device)
    if training.patch_form == "full":
        return FullPatch(matrix, bias, around_start=training.decays_to_start)
    if training.patch_form == "diagonal":
        return DiagonalPatch(matrix, bias, training.basis, around_start=training.decays_to_start)
    return LowRankPatch(matrix, bias, training.rank, seed)


def _source(
    training: Training,
    student: Runner,
    ids: Tensor,
    cache: Cache,
    model_key: Mapping[str, Any],
    workers: Workers,
) -> Source:
    """Where lessons come from; targets that are kept are made now."""
    if training.keeping is None:
        return Online(training, student, ids)
    cached = Cached(training, student, ids, training.keeping, cache, model_key)
    missing = cached.missing()
    _check_room(training.keeping, student, len(missing) * SHARD * ids.shape[1], cache)
    workers.wait()
    rows = workers.share(missing)
    with steps(f"targets, {SHARD} sequences each", len(rows)) as on_step:
        cached.prepare(rows, on_step)
    workers.wait()
    return cached


def _with_rate(training: Training, loop_of: Callable[[Training], Loop], state: Entry | None) -> Training:
    """The training with a learning rate that is a number: as set, as it was before it was stopped, or searched."""
    if training.learning_rate != "auto":
        return training
    if state is not None:
        return replace(training, learning_rate=state.facts["learning_rate"])
    constant = replace(training, learning_rate=RATES[0], final_learning_rate=1.0, on_policy=0.0)
    return replace(training, learning_rate=best_rate(loop_of(constant)))


def _check_room(keeping: Keeping, student: Runner, tokens: int, cache: Cache) -> None:
    """Reject targets that the disk has no room for, before they are computed."""
    if cache.root is None:
        return
    needed = tokens * (keeping.bytes_per_token + (2 * student.decoder.hidden_size if keeping.states else 0))
    make_folder(cache.root)
    free = shutil.disk_usage(cache.root).free
    if needed > free:
        raise StorageError(
            f"Targets of {tokens:,} tokens take {needed / 2**30:.1f} GiB, and {cache.root} has {free / 2**30:.1f} GiB "
            "free. Use distill.targets=online, which takes none, a smaller distill.top_k, or another cache_dir."
        )


def _train(
    loop: Loop,
    state: Entry | None,
    fitted: Edit,
    cache: Cache,
    key: Mapping[str, Any],
    report: Callable[[Mapping[str, float]], None],
) -> Entry:
    if state is not None:
        loop.restore(state)
        log.info("distill: resuming after step %d of %d", loop.step, loop.total)

    def save(current: Entry) -> None:
        cache.put("distillation_state", key, current, remember=False)

    try:
        loop.run(save=save, report=report)
    except Diverged as error:
        raise TrainingFailed(error, _distilled(_entry(loop, fitted), fitted)) from error
    return _entry(loop, fitted)


def _entry(loop: Loop, fitted: Edit) -> Entry:
    """What was reached: the best operators and weights, which are the fitted ones where no step improved them."""
    best = loop.best_edit() if loop.best_step else fitted
    keep = loop.workers.is_main
    weights = {name: gathered(values, keep=keep) for name, values in tensors_of(best.weights, WEIGHTS).items()}
    if loop.is_sharded and not keep:
        best, weights = best.with_weights({}), {}
    operators = _operators(best)
    tensors = {
        f"{index}.{name}": values.detach().cpu().float()
        for index, operator in enumerate(operators)
        for name, values in operator.named_parameters()
    }
    tensors |= {name: values.cpu().clone() for name, values in weights.items()}
    facts = {
        "operators": [{"operator": operator.name, **operator.spec()} for operator in operators],
        "weights": describe_weights(best.weights),
        "history": loop.history,
        "num_steps": loop.step,
        "best_step": loop.best_step,
        "num_trained": sum(parameter.numel() for parameter in loop.parameters),
        "num_tokens": loop.num_tokens,
        "learning_rate": loop.training.learning_rate,
        "seconds": round(loop.seconds, 1),
        "peak_memory_bytes": peak_memory(loop.student.decoder.input_device),
    }
    return Entry(tensors, facts)


def _distilled(entry: Entry, edit: Edit) -> Distilled:
    operators = []
    for index, spec in enumerate(entry.facts["operators"]):
        operator = operator_from(spec)
        prefix = f"{index}."
        operator.load_state_dict(
            {name.removeprefix(prefix): values for name, values in entry.tensors.items() if name.startswith(prefix)}
        )
        operators.append(operator)
    facts = entry.facts
    weights = weights_from(facts["weights"], entry.tensors, WEIGHTS)
    edit = edit.with_modules(operators).with_weights(weights)
    figures = {setting.name: facts[setting.name] for setting in fields(Distilled) if setting.name != "edit"}
    return Distilled(edit, **figures)
