"""From an edited model to a trained one: where its lessons come from, and what is kept of the training."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation.distilled import Distilled, TrainingFailed, distilled_of, entry_of
from linearpatch.distillation.helping import Assignment, send
from linearpatch.distillation.loop import Diverged, Loop
from linearpatch.distillation.range_test import RATES, best_rate
from linearpatch.distillation.sources import SHARD, Cached, Online, Source
from linearpatch.distillation.student import check_alike, check_operators, student_of
from linearpatch.distillation.training import Keeping, Training
from linearpatch.errors import StorageError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.gradients import gradients_for
from linearpatch.models.offload import parked
from linearpatch.models.runner import Runner
from linearpatch.registry import identity
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.progress import steps
from linearpatch.storage.cache import Cache, Entry, digest_of
from linearpatch.storage.files import make_folder

log = logging.getLogger(__name__)


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
    check_operators(edit)
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
            with parked(decoder.model) if training.sharded else nullcontext():
                workers.wait()  # until all devices have room
                finished = _trained(training, decoder, edit, text, validation, cache, key, seed, workers, report)
            if workers.is_main:
                cache.put("distillation", key, finished)
        else:
            for point in finished.facts["history"]:
                report(point)
        workers.wait()
        if workers.is_main:
            cache.remove("distillation_state", key)
    distilled = distilled_of(finished, edit)
    if distilled.best_step == 0:
        log.warning(
            "distill: no step improved the fitted model, which is kept. Use another distill.learning_rate (now %g) or "
            "more text.",
            distilled.learning_rate,
        )
    return distilled


def _trained(
    training: Training,
    decoder: Decoder,
    edit: Edit,
    text: TokenBlocks,
    validation: TokenBlocks,
    cache: Cache,
    key: Mapping[str, Any],
    seed: int,
    workers: Workers,
    report: Callable[[Mapping[str, float]], None],
) -> Entry:
    """The result of the training, from its beginning or a saved state; what it needs is released when it ends."""
    student = student_of(training, decoder, edit, seed, workers)
    check_alike(student, workers)
    state = cache.find("distillation_state", key, remember=False)
    source = _source(training, student, torch.cat([text.ids, validation.ids]), cache, key["model"], workers)

    def loop_of(settings: Training) -> Loop:
        return Loop(settings, student, source, len(validation.ids), seed=seed, workers=workers)

    return _train(loop_of(_with_rate(training, loop_of, state)), state, edit, cache, key, report)


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
        raise TrainingFailed(error, distilled_of(entry_of(loop, fitted), fitted)) from error
    return entry_of(loop, fitted)
