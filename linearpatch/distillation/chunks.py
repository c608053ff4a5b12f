"""A loss of the head in chunks of tokens: value and gradient in one go, then the chunk's logits are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The sum of the losses of some rows, given which rows and their hidden states, `[rows, hidden_size]`.
LossOfRows = Callable[[slice, Tensor], Tensor]


def mean_loss(hidden: Tensor, loss_of: LossOfRows, rows: int) -> Tensor:
    """Mean over all rows of a loss that is computed for a few rows at a time.

    The same loss and gradients as in one piece. Because the loss is the end of the graph, a chunk's gradient is
    taken at once, and no chunk's intermediate values outlive it.

    Args:
        hidden: `[n, hidden_size]`, the only input that gets a gradient.
        loss_of: Sum of the losses of some rows.
        rows: How many at a time.

    Returns:
        A scalar in fp32 (fp64 for fp64), to call `backward` on.
    """
    total: Tensor = _MeanLoss.apply(hidden, loss_of, rows)  # type: ignore[no-untyped-call]
    return total


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss_of: LossOfRows, rows: int) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), dtype=at_least_fp32(hidden), device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            if gradient is None:
                total += loss_of(part, hidden[part])
                continue
            leaf = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                loss = loss_of(part, leaf)
            gradient[part] = torch.autograd.grad(loss, leaf)[0]
            total += loss.detach()
        ctx.gradient, ctx.count = gradient, len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * (outputs[0] / ctx.count), None, None


def at_least_fp32(values: Tensor) -> torch.dtype:
    """fp64 for fp64, fp32 for all else."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
