"""Whether what was made for one dense model fits another: shapes, before anything is copied."""

from __future__ import annotations

import torch
from torch import nn

from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder


@torch.no_grad()
def check_maps_stream(dense: Decoder, operator: nn.Module) -> None:
    """Reject an operator that doesn't map the residual stream of a model to itself, by trying one token.

    Raises:
        ModelError: it was made for another width.
    """
    kind, width = type(operator).__name__, dense.hidden_size
    anchor = next(operator.parameters(), torch.empty(0))
    try:
        shape = operator(anchor.new_zeros(1, 1, width)).shape
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _other_model(dense, f"a {kind} can't read its stream ({error})") from error
    if shape != (1, 1, width):
        raise _other_model(dense, f"a {kind} writes {shape[-1]:,} channels")


def check_same_shape(dense: Decoder, what: str, given: torch.Size, expected: tuple[int, ...]) -> None:
    """Reject what is added to a weight of another shape.

    Raises:
        ModelError: the shapes differ.
    """
    if tuple(given) != expected:
        raise _other_model(dense, f"{what} has the shape {list(expected)}, its change {list(given)}")


def _other_model(dense: Decoder, reason: str) -> ModelError:
    return ModelError(
        f"{type(dense.model).__name__} with {dense.hidden_size:,} channels isn't the model that this edit was made "
        f"for: {reason}. Use the dense model that its layers were chosen and its patches fitted in."
    )
