"""Results that must be finite, and what to do where they aren't."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from torch import Tensor

from linearpatch.errors import NumericsError


def finite(values: Tensor, what: str, unit: str) -> Tensor:
    """The values, all of them finite.

    Args:
        values: Any shape.
        what: They are, for the error.
        unit: What one of them belongs to, such as `layer`.

    Raises:
        NumericsError: one isn't.
    """
    # NaN and infinities show in the smallest and largest value; `isfinite` would copy a large matrix.
    if values.numel() and not all(bound.isfinite() for bound in values.aminmax()):
        bad = (~values.isfinite()).nonzero()
        raise NumericsError(not_finite(what, f"{unit} {bad[0].tolist()} ({len(bad)} of {values.numel()})"))
    return values


def require_finite(losses: Sequence[float], removals: Sequence[Sequence[int | str]]) -> None:
    """Reject candidates of which none has a finite loss.

    Args:
        losses: One for each candidate.
        removals: The layers that each removes.

    Raises:
        NumericsError: none has.
    """
    if not any(isfinite(loss) for loss in losses):
        tried = [list(removed) for removed in removals]
        raise NumericsError(not_finite("the calibration loss", f"each of the layers {tried} removed"))


def not_finite(what: str, where: str) -> str:
    """The error's text."""
    return (
        f"{what} is not finite at {where}. In fp16 large activations overflow: use model.dtype=bfloat16 or "
        "float32; otherwise check that the weights are intact."
    )
