"""How far two distributions over tokens are apart."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional

DIVERGENCES = ("forward", "reverse", "jsd")


def divergence(student_log: Tensor, teacher_log: Tensor, kind: str, mixture: float) -> Tensor:
    """Sum over rows of the divergence of the student's distribution q from the teacher's p.

    Args:
        student_log: log q, `[rows, tokens]`.
        teacher_log: log p.
        kind: `forward`: KL(p ‖ q), as large as what the student lacks of the teacher. `reverse`: KL(q ‖ p), as large
            as what it has too much. `jsd`: β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q, the generalised
            Jensen-Shannon divergence (Agarwal et al., "On-policy distillation of language models", 2024).
        mixture: β.
    """
    if kind == "forward":
        return functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    if kind == "reverse":
        return functional.kl_div(teacher_log, student_log, reduction="sum", log_target=True)
    mixed = torch.logaddexp(teacher_log + log(mixture), student_log + log(1 - mixture))
    of_teacher, of_student = (
        functional.kl_div(mixed, logits, reduction="sum", log_target=True) for logits in (teacher_log, student_log)
    )
    return mixture * of_teacher + (1 - mixture) * of_student
