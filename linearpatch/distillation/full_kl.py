"""Distillation of the dense model's whole distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from linearpatch.distillation.chunks import at_least_fp32, mean_loss
from linearpatch.distillation.training import Lesson, Training
from linearpatch.errors import require_range
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import logit_rows
from linearpatch.models.runner import Runner
from linearpatch.registry import component


@component("distill", "full_kl", title="full KL")
@dataclass(frozen=True)
class FullKL(Training):
    """KL divergence over the whole vocabulary, the usual loss of distillation.

    Attributes:
        temperature: Divides both models' logits.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("distill.temperature", self.temperature, low=0.01, high=100)

    def streams(self, student: Runner) -> set[int]:
        """What enters the final norm."""
        return {student.decoder.num_layers}

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Hidden states after the final norm; logits are made of them when they are needed."""
        return {"normed": decoder.final_norm(streams[decoder.num_layers])}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """KL over all logits, a chunk of tokens at a time; times τ² as in `top_k_kl`."""
        decoder = student.decoder
        normed = decoder.final_norm(student.run(lesson.stream, lesson.calls)).flatten(0, -2)
        taught = lesson.targets["normed"].flatten(0, -2)

        def loss_of(part: slice, hidden: Tensor) -> Tensor:
            student_log, teacher_log = (
                (logits.to(at_least_fp32(logits)) / self.temperature).log_softmax(dim=-1)
                for logits in (decoder.logits(hidden), decoder.logits(taught[part]))
            )
            kl = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
            return self.temperature**2 * kl

        return mean_loss(normed, loss_of, logit_rows(decoder, normed.device))
