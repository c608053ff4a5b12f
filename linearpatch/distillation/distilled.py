"""What a training ends with: the edit as it was when its validation loss was lowest, and what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation.loop import Diverged, Loop
from linearpatch.distillation.sharding import gathered
from linearpatch.distillation.student import operators_of
from linearpatch.distillation.training import Training
from linearpatch.models.edit import Edit
from linearpatch.models.modeling_linearpatch import operator_from
from linearpatch.models.weight_changes import describe_weights, tensors_of, weights_from
from linearpatch.registry import identity, name_of
from linearpatch.results.fields import section_of
from linearpatch.results.sections import DistillationSection, PointSection
from linearpatch.runtime.memory import peak_memory
from linearpatch.storage.cache import Entry

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


def entry_of(loop: Loop, fitted: Edit) -> Entry:
    """What was reached: the best operators and weights, which are the fitted ones where no step improved them.

    Of a sharded training all processes must ask; the first one's entry alone has the weights.
    """
    best = loop.best_edit() if loop.best_step else fitted
    keep = loop.workers.is_main
    weights = {name: gathered(values, keep=keep) for name, values in tensors_of(best.weights, WEIGHTS).items()}
    if loop.is_sharded and not keep:
        best, weights = best.with_weights({}), {}
    operators = operators_of(best)
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
        "num_trained": loop.parameters.count,
        "num_tokens": loop.num_tokens,
        "learning_rate": loop.training.learning_rate,
        "seconds": round(loop.seconds, 1),
        "peak_memory_bytes": peak_memory(loop.student.decoder.input_device),
    }
    return Entry(tensors, facts)


def distilled_of(entry: Entry, edit: Edit) -> Distilled:
    """What was kept of a training, as a value.

    Args:
        entry: Of `entry_of`.
        edit: What was trained, as it was fitted.
    """
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
