"""First-order importance layer by layer, against the memory of one forward pass."""

from __future__ import annotations

from torch import Tensor

from benchmarks.measure import Claim, peak_memory
from linearpatch.calibration.gradients import first_order_importance
from linearpatch.models.model import LoadedModel

BLOCKS, LENGTH = 10, 128  # as published


def claims() -> list[Claim]:
    """Peak memory at most 1.3 × that of a forward pass on the same batch."""
    ours, forward, backward = (peak_memory(work, BLOCKS, LENGTH) for work in (importance, forward_pass, full_backward))
    detail = f"{BLOCKS} × {LENGTH} tokens; {ours / 2**20:,.0f} MiB"
    return [
        Claim("peak memory / forward pass", ours / forward, 1.3, "", f"{detail} / {forward / 2**20:,.0f} MiB"),
        Claim(
            "peak memory / full backward pass",
            ours / backward,
            1.0,
            "",
            f"{detail} / {backward / 2**20:,.0f} MiB",
        ),
    ]


def importance(model: LoadedModel, ids: Tensor) -> None:
    """The importance of every layer."""
    first_order_importance(model.decoder, [ids])


def forward_pass(model: LoadedModel, ids: Tensor) -> None:
    """One forward pass with the head."""
    model.decoder.model(input_ids=ids, use_cache=False)


def full_backward(model: LoadedModel, ids: Tensor) -> None:
    """One ordinary backward pass, as the published code runs."""
    import torch

    model.decoder.model.requires_grad_(True)
    with torch.enable_grad():
        model.decoder.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
