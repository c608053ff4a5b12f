"""Training on the text itself, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from linearpatch.distillation.chunks import at_least_fp32, mean_loss
from linearpatch.distillation.training import Lesson, Training
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import logit_rows
from linearpatch.models.runner import Runner
from linearpatch.registry import component


@component("distill", "language_model", title="language modelling")
@dataclass(frozen=True)
class LanguageModel(Training):
    """Cross entropy of the text's next tokens: fine-tuning, as much of the literature heals.

    The dense model runs only up to where the student begins.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_policy:
            raise ConfigError(
                f"distill.on_policy is {self.on_policy}, but with distill=language_model no dense model scores what "
                "the student writes. Use distill=output_kl, or distill.on_policy=0."
            )

    def streams(self, student: Runner) -> set[int]:
        """None."""
        return set()

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Nothing: the text says it."""
        return {}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """Mean over all tokens but the first of each sequence, a chunk of logits at a time."""
        normed = student.edited.final_norm(student.run(lesson.stream, lesson.calls))
        hidden, following = normed[:, :-1].flatten(0, -2), lesson.ids[:, 1:].flatten()

        def loss_of(part: slice, rows: Tensor) -> Tensor:
            logits = student.edited.logits(rows)
            target = following[part].to(logits.device)
            return functional.cross_entropy(logits.to(at_least_fp32(logits)), target, reduction="sum")

        rows = logit_rows(student.decoder, hidden.device)
        return mean_loss(hidden, loss_of, rows, tuple(student.edited.head.parameters()))
