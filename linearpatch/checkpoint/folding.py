"""Operators folded into weights of a stock model: the same function, without a module more."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from linearpatch.errors import ModelError
from linearpatch.models.agreement import allowed_difference, check_logits_of, difference
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.edit import Edit


@torch.no_grad()
def folded_view(dense: Decoder, edit: Edit) -> PreTrainedModel:
    """The edited model with its operators folded into copies of the weights concerned.

    Its class is the stock one and it has no parameters of its own; all weights but those folded into are
    the dense model's. A few tokens run through it and through the view, which must agree.

    Args:
        dense: The dense model; it does not change.
        edit: One whose operators `can_fold`.

    Raises:
        ModelError: the family's layers can't absorb them exactly.
    """
    model = edit.with_operators(()).view(dense)
    view = decoder_of(model)
    kept = [index for index in range(dense.num_layers) if index not in edit.removed_layers]
    for placed in edit.operators:
        placed.place.fold(view, kept, placed.module)
    if edit.operators:
        _check(model, edit.view(dense))
    return model


def _check(folded: PreTrainedModel, patched: PreTrainedModel) -> None:
    """Run a few tokens through both: a layer that isn't what it seems shows in the logits.

    Raises:
        ModelError: they differ by more than rounding.
    """
    error = difference(check_logits_of(folded), check_logits_of(patched))
    allowed = allowed_difference(patched.dtype)
    if not error <= allowed:
        raise ModelError(
            f"Folding the patches into the weights of {type(folded).__name__} changes its logits by {error:.1e} of the "
            f"largest (allowed: {allowed:.0e} in {str(patched.dtype).removeprefix('torch.')}). Use save_format=custom "
            "or adapter."
        )
