"""Which parameters get gradients, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def gradients_for(parameters: Sequence[nn.Parameter], required: bool) -> Iterator[None]:
    """Let some parameters have gradients, or none of them, and put the setting back."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(required)
    try:
        yield
    finally:
        for parameter, setting in zip(parameters, before, strict=True):
            parameter.requires_grad_(setting)
