"""The student: an edited model whose patches, and other weights where the training says so, train."""

from __future__ import annotations

import copy
import json

import torch
from torch import nn

from linearpatch.distillation.patch_forms import (
    DiagonalPatch,
    FullPatch,
    LowRankPatch,
    OperatorPatch,
    TrainablePatch,
    dense_form,
)
from linearpatch.distillation.sharding import sharded
from linearpatch.distillation.training import Training
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.modeling_linearpatch import ChannelScale, LinearMap, Operator
from linearpatch.models.runner import Runner
from linearpatch.runtime.distributed import Workers


def student_of(training: Training, decoder: Decoder, edit: Edit, seed: int, workers: Workers) -> Runner:
    """The edited model with patches and weights that train; its beginning is the edited model itself."""
    weights = training.trainable_set.weights(decoder, edit, seed, anywhere=training.sharded)
    weights = {name: change for name, change in weights.items() if training.sees(decoder, name) or name in edit.weights}
    own = workers.device if training.sharded else None
    readers = [placed.place.runs_with(set(edit.removed_layers)) for placed in edit.operators]
    patches = [
        _trainable(training, operator, decoder.hidden_size, own or decoder.reading_device(reader), seed + index)
        for index, (operator, reader) in enumerate(zip(operators_of(edit), readers, strict=True))
    ]
    student = Runner(decoder, edit.with_modules(patches).with_weights(weights), training.recompute)
    training.check_student(student)
    return student if own is None else sharded(student, own)


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


def check_alike(student: Runner, workers: Workers) -> None:
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


def check_operators(edit: Edit) -> None:
    """Reject operators without a spec: what becomes of them couldn't be kept."""
    unknown = [type(placed.module).__name__ for placed in edit.operators if not isinstance(placed.module, Operator)]
    if unknown:
        raise ConfigError(
            f"A {unknown[0]} can't be distilled: it has no spec, so the trained operator couldn't be saved. Derive it "
            "from linearpatch.models.modeling_linearpatch.Operator (docs/extending.md)."
        )


def operators_of(edit: Edit) -> list[Operator]:
    """The operators of an edit that have a spec: all that `check_operators` lets pass."""
    return [placed.module for placed in edit.operators if isinstance(placed.module, Operator)]
