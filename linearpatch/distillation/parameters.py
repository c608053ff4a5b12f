"""What a training moves: the parameters of patches and changed weights, whole or this process' parts of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from linearpatch.distillation.sharding import clip_gradients, gathered, is_sharded, joined, local, spread_like
from linearpatch.models.edit import Edit
from linearpatch.runtime.distributed import Workers


class Parameters:
    """The parameters of an edit that require gradients.

    Args:
        edit: Its operators and changed weights.
        workers: Processes that train the same parameters, each on sequences of its own.

    Attributes:
        trained: The parameters, in the order of operators and weights.
    """

    def __init__(self, edit: Edit, workers: Workers) -> None:
        modules = [*(placed.module for placed in edit.operators), *edit.weights.values()]
        self.trained: list[nn.Parameter] = [
            parameter for module in modules for parameter in module.parameters() if parameter.requires_grad
        ]
        self._workers = workers

    @property
    def count(self) -> int:
        """Numbers that train."""
        return sum(parameter.numel() for parameter in self.trained)

    def copies(self) -> list[Tensor]:
        """Copies of this process' parts in CPU memory; the device's is needed for training."""
        return [local(parameter.detach()).to("cpu", copy=True) for parameter in self.trained]

    @torch.no_grad()
    def load(self, copies: Sequence[Tensor]) -> None:
        """Take the values of copies."""
        for parameter, value in zip(self.trained, copies, strict=True):
            local(parameter).copy_(value)

    def sum_gradients(self) -> None:
        """Add up the gradients of all processes; a process may have had no sequence in the last step of an epoch."""
        for parameter in self.trained:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient if is_sharded(parameter) else self._workers.sum(gradient)

    def clip_gradients(self, longest: float) -> None:
        """Scale gradients down to a norm, that of all processes' parts together."""
        clip_gradients(self.trained, longest, self._workers)

    def whole(self, copies: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The values, or those of copies, joined over all processes, who all must ask; the first one gets them."""
        values: Iterable[Tensor] = (parameter.detach() for parameter in self.trained)
        if copies is not None:
            values = (joined(part, parameter) for part, parameter in zip(copies, self.trained, strict=True))
        return [gathered(value, keep=self._workers.is_main) for value in values]

    def parts(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """This process' parts of whole values, one for each parameter."""
        return [local(spread_like(value, parameter)) for value, parameter in zip(whole, self.trained, strict=True)]
