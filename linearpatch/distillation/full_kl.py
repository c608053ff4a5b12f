"""Distillation of the dense model's whole distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linearpatch.distillation.chunks import at_least_fp32, mean_loss
from linearpatch.distillation.divergence import divergence, entropy, entropy_weights
from linearpatch.distillation.logit_loss import LogitLoss
from linearpatch.distillation.training import Lesson
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import logit_rows
from linearpatch.models.runner import Runner
from linearpatch.registry import component


@component("distill", "full_kl", title="full KL")
@dataclass(frozen=True)
class FullKL(LogitLoss):
    """KL divergence over the whole vocabulary, the usual loss of distillation."""

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Hidden states after the final norm; logits are made of them when they are needed. Weights of tokens, too."""
        normed = decoder.final_norm(streams[decoder.num_layers])
        if self.token_weighting == "none":
            return {"normed": normed}
        rows = logit_rows(decoder, normed.device)
        entropies = [entropy(self._log(decoder.logits(part))) for part in normed.flatten(0, -2).split(rows)]
        return {"normed": normed, "weights": entropy_weights(torch.cat(entropies)).view(normed.shape[:-1])}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """The divergence of all logits, a chunk of tokens at a time; times τ² as in `top_k_kl`."""
        normed = student.edited.final_norm(student.run(lesson.stream, lesson.calls)).flatten(0, -2)
        taught = lesson.targets["normed"].flatten(0, -2)
        weights = lesson.targets["weights"].flatten() if "weights" in lesson.targets else taught.new_ones(len(taught))

        def loss_of(part: slice, hidden: Tensor) -> Tensor:
            student_log, teacher_log = (
                self._log(logits) for logits in (student.edited.logits(hidden), student.decoder.logits(taught[part]))
            )
            apart = divergence(student_log, teacher_log, self.divergence, self.mixture)
            return self.temperature**2 * (weights[part].to(apart) * apart).sum()

        rows = logit_rows(student.decoder, normed.device)
        return mean_loss(normed, loss_of, rows, tuple(student.edited.head.parameters()))

    def _log(self, logits: Tensor) -> Tensor:
        return (logits.to(at_least_fp32(logits)) / self.temperature).log_softmax(dim=-1)
