"""How far two distributions over tokens are apart."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional

DIVERGENCES = ("forward", "reverse", "jsd")


def divergence(student_log: Tensor, teacher_log: Tensor, kind: str, mixture: float) -> Tensor:
    """The divergence of the student's distribution q from the teacher's p, `[rows]`.

    Args:
        student_log: log q, `[rows, tokens]`.
        teacher_log: log p.
        kind: `forward`: KL(p ‖ q), as large as what the student lacks of the teacher. `reverse`: KL(q ‖ p), as large
            as what it has too much. `jsd`: β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q, the generalised
            Jensen-Shannon divergence (Agarwal et al., "On-policy distillation of language models", 2024).
        mixture: β.
    """
    if kind == "forward":
        return _kl(student_log, teacher_log)
    if kind == "reverse":
        return _kl(teacher_log, student_log)
    mixed = torch.logaddexp(teacher_log + log(mixture), student_log + log(1 - mixture))
    return mixture * _kl(mixed, teacher_log) + (1 - mixture) * _kl(mixed, student_log)


def entropy(logs: Tensor) -> Tensor:
    """Of distributions given by their logarithms, in nats, `[…]`."""
    return -(logs.exp() * logs).sum(dim=-1)


def entropy_weights(entropies: Tensor) -> Tensor:
    """Weights of tokens in proportion to the teacher's entropy, with a mean of 1; all 1 where it is sure of all."""
    mean = entropies.mean()
    return entropies / mean if mean > 0 else torch.ones_like(entropies)


def _kl(of: Tensor, reference: Tensor) -> Tensor:
    """KL(reference ‖ of) of each row."""
    return functional.kl_div(of, reference, reduction="none", log_target=True).sum(dim=-1)
