"""What a dry run can find out: whether layers can be removed, texts and data are at hand, and there is enough of them.

Nothing is downloaded and nobody is asked: what isn't on this machine is an error only where the run couldn't get it
either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.documents import DeferredDocuments
from linearpatch.data.files import TextCorpus
from linearpatch.data.hub_access import offline
from linearpatch.data.reader import Reader, Text
from linearpatch.errors import ConfigError, DataError, LinearPatchError
from linearpatch.experiment import Experiment, digest
from linearpatch.models.model import Model
from linearpatch.registry import identity
from linearpatch.sweep.plan import Plan

log = logging.getLogger(__name__)

# Tokens are at most as many as bytes; text in any language has more than this share of that.
FEWEST_TOKENS_PER_BYTE = 1 / 16


def checked(plan: Plan) -> Plan:
    """The plan, with those runs marked that turn out to be impossible."""
    feasibility = Feasibility()
    rejected: dict[str, LinearPatchError] = {}
    for job in plan.jobs:
        if job.is_pending and job.experiment is not None:
            try:
                feasibility.check(job.experiment)
            except LinearPatchError as error:
                rejected[job.name] = error
    return replace(plan, jobs=tuple(replace(job, error=rejected.get(job.name, job.error)) for job in plan.jobs))


class Feasibility:
    """Answers for the runs of a plan; what several of them read is looked at once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}
        self._asked_offline = bool(constants.HF_HUB_OFFLINE)

    def check(self, experiment: Experiment) -> None:
        """Reject a run that its model doesn't allow, or whose text or data is missing or too little.

        Raises:
            ModelError: the model is nowhere.
            DataError: text or data is missing or too little, or a file can't be read.
            ConfigError: layers can't be removed as asked, or a task is unknown.
        """
        config = self._once(("model", digest(identity(experiment.model))), lambda: _config(experiment))
        if config is not None:
            experiment.check_model(config)
        with offline():
            spec = experiment.calibration_blocks()
            self._check_text(experiment, experiment.calibration_reader, spec, experiment.num_held_out)
            if experiment.training is not None:
                spec = experiment.distillation.blocks(experiment.seed)
                held_out = experiment.distillation.validation_blocks
                self._check_text(experiment, experiment.distillation_reader, spec, held_out)
            for name, evaluation in experiment.evaluations.items():
                reader = experiment.evaluation_reader
                if (spec_of_text := evaluation.spec(name)) is not None:
                    for each in evaluation.readers(reader):
                        self._check_text(experiment, each, spec_of_text, 0)
                elif experiment.datasets_dir is not None:  # else tasks come from the hub
                    key = ("evaluation", name, digest([experiment.measured[name], experiment.datasets_dir]))
                    self._at_hand(
                        key, partial(evaluation.prepare, name, reader), surely=self._only_local(reader.datasets_dir)
                    )

    def _check_text(self, experiment: Experiment, reader: Reader, spec: BlockSpec, held_out: int) -> None:
        key = ("text", reader.source, digest([identity(reader.corpus), str(reader.datasets_dir)]))
        text: Text | None = self._at_hand(
            key, reader.open, surely=isinstance(reader.corpus, TextCorpus) or self._only_local(reader.datasets_dir)
        )
        if text is None:
            return
        needed = text.allowed(spec).fewest_tokens(held_out)
        documents = text.documents
        if isinstance(documents, DeferredDocuments):
            if needed > documents.most_tokens:
                raise DataError(
                    f"{text.source} has at most {documents.most_tokens:,} tokens, and {needed:,} are needed. "
                    f"{spec.advice(documents.most_tokens)}"
                )
            return
        size = self._once((*key, "bytes"), lambda: sum(map(_bytes, documents)))
        if needed <= size * FEWEST_TOKENS_PER_BYTE:
            return
        model = digest(identity(experiment.model))
        tokenizer = self._once(("tokenizer", model), lambda: experiment.model.tokenizer(experiment.cache_path))
        if tokenizer is not None:  # as the run would, which says what is wrong
            cut = partial(text.cut_apart, spec, tokenizer, held_out) if held_out else partial(text.cut, spec, tokenizer)
            enough = (
                *key,
                "cut",
                model,
                replace(spec, seed=0),
                spec.names,
                held_out,
            )  # which blocks they are doesn't matter
            failure = self._once(enough, lambda: _failure_of(cut))
            if failure is not None:
                raise failure
        elif needed > size + len(documents):
            raise DataError(
                f"{text.source} has {size:,} bytes and so fewer tokens than that, and {needed:,} are needed. "
                f"{spec.advice(size)}"
            )

    def _only_local(self, datasets_dir: Path | None) -> bool:
        """Whether the user said where the data is, and that the hub isn't to be asked."""
        return self._asked_offline and datasets_dir is not None

    def _at_hand(self, key: Hashable, read: Callable[[], Any], *, surely: bool = False) -> Any:
        """What is read, or None where only the hub has it and may be asked when the run starts."""
        outcome = self._once(key, lambda: _attempt(read))
        if not isinstance(outcome, LinearPatchError):
            return outcome
        if surely or not isinstance(outcome, DataError):
            raise outcome
        self._once(
            (key, "logged"), lambda: log.warning("not on this machine, so that a run will need the hub: %s", outcome)
        )
        return None

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _config(experiment: Experiment) -> Any | None:
    """The model's configuration; None where only the hub has it.

    Raises:
        LinearPatchError: the configuration can't be had anywhere, or not made.
    """
    model = experiment.model
    try:
        with offline():
            return model.config(experiment.cache_path)
    except ConfigError:
        raise
    except (LinearPatchError, OSError, ValueError) as error:
        if not may_be_downloaded(model):
            raise
        log.info("%s isn't on this machine, so that layers can't be checked before the run: %s", model.label, error)
        return None


def may_be_downloaded(model: Model) -> bool:
    """Whether a model is named by an id of the hub, not by a place on this machine."""
    path = str(getattr(model, "path", ""))
    return bool(path) and not path.startswith((".", "/", "~")) and not Path(path).exists()


def _bytes(document: Any) -> int:
    return len((document if isinstance(document, str) else repr(document)).encode("utf-8", "replace"))


def _failure_of(attempt: Callable[[], Any]) -> LinearPatchError | None:
    outcome = _attempt(attempt)
    return outcome if isinstance(outcome, LinearPatchError) else None


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except LinearPatchError as error:
        return error
