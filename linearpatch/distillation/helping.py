"""The processes of a training beside the first one: they are sent what it made, and train with it.

The first process chooses layers, fits patches and measures. The others load the model and wait.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearpatch.data.blocks import TokenBlocks
from linearpatch.errors import StorageError
from linearpatch.models.edit import Edit
from linearpatch.runtime.distributed import Workers


@dataclass(frozen=True)
class Assignment:
    """What is trained, on what.

    Attributes:
        edit: What is removed, and the fitted operators.
        text: What is trained on.
        validation: What decides which step is best.
        model_key: What identifies the dense model.
        seed: Of the order of the sequences.
    """

    edit: Edit
    text: TokenBlocks
    validation: TokenBlocks
    model_key: Mapping[str, Any]
    seed: int


def send(assignment: Assignment, workers: Workers) -> None:
    """Give the other processes theirs; called by the first."""
    edit = assignment.edit
    operators = [copy.deepcopy(placed.module).cpu() for placed in edit.operators]
    weights = {name: copy.deepcopy(change).cpu() for name, change in edit.weights.items()}
    edit = edit.with_modules(operators).with_weights(weights)
    workers.broadcast(
        Assignment(edit, assignment.text, assignment.validation, dict(assignment.model_key), assignment.seed)
    )


def receive(workers: Workers) -> Assignment:
    """Wait for the first process to choose and fit; called by the others.

    Raises:
        StorageError: it ended before.
    """
    try:
        assignment: Assignment = workers.broadcast(None)
    except RuntimeError as error:
        raise StorageError("The first process ended before there was anything to train; it says why.") from error
    return assignment
