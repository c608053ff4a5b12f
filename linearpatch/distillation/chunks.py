"""A loss of the head in chunks of tokens: value and gradient in one go, then the chunk's logits are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The sum of the losses of some rows, given which rows and their hidden states, `[rows, hidden_size]`.
LossOfRows = Callable[[slice, Tensor], Tensor]


def mean_loss(hidden: Tensor, loss_of: LossOfRows, rows: int, parameters: Sequence[Tensor] = ()) -> Tensor:
    """Mean over all rows of a loss that is computed for a few rows at a time.

    The same loss and gradients as in one piece. Because the loss is the end of the graph, a chunk's gradient is
    taken at once, and no chunk's intermediate values outlive it.

    Args:
        hidden: `[n, hidden_size]`.
        loss_of: Sum of the losses of some rows.
        rows: How many at a time.
        parameters: What the loss depends on beside them, such as a head that is trained. These and `hidden` get
            gradients, and nothing else.

    Returns:
        A scalar in fp32 (fp64 for fp64), to call `backward` on.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad and torch.is_grad_enabled()]
    total: Tensor = _MeanLoss.apply(hidden, loss_of, rows, *trained)  # type: ignore[no-untyped-call]
    return total


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss_of: LossOfRows, rows: int, *trained: Tensor) -> Tensor:
        rows_too = ctx.needs_input_grad[0]
        at_rows = torch.empty_like(hidden) if rows_too else None
        at_trained = [torch.zeros_like(parameter) for parameter in trained]
        total = torch.zeros((), dtype=at_least_fp32(hidden), device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            leaf = hidden[part].detach().requires_grad_(rows_too)
            with torch.set_grad_enabled(rows_too or bool(trained)):
                loss = loss_of(part, leaf)
            total += loss.detach()
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, [*trained, *([leaf] if rows_too else [])])
            for gradient, added in zip(at_trained, gradients, strict=False):
                gradient += added
            if at_rows is not None:
                at_rows[part] = gradients[-1]
        ctx.at_rows, ctx.at_trained, ctx.count = at_rows, at_trained, len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = outputs[0] / ctx.count
        at_rows = None if ctx.at_rows is None else ctx.at_rows * scale
        return (at_rows, None, None, *(gradient * scale for gradient in ctx.at_trained))


def at_least_fp32(values: Tensor) -> torch.dtype:
    """fp64 for fp64, fp32 for all else."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
