"""Distillation of the stream past each interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linearpatch.distillation.chunks import at_least_fp32
from linearpatch.distillation.training import Lesson, Training
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.runner import Runner
from linearpatch.models.units import LAYER, SUBLAYER
from linearpatch.registry import component


@component("distill", "feature_mse", title="feature MSE")
@dataclass(frozen=True)
class FeatureMSE(Training):
    """Squared error of the patched stream at each interface, against what the next layer used to read.

    The paper's comparison (table 5), which overfits there; LLM-Streamline trains its replacement layer so.
    """

    allows_sublayers: ClassVar[bool] = False

    def check_student(self, student: Runner) -> None:
        """Reject weights that lie after the last interface, which this loss doesn't see."""
        self.check_unit(SUBLAYER if student.edit.removed_parts else LAYER)
        last = max(self.streams(student))
        unseen = sorted({name.layer for name in student.edit.weights if name.layer >= last})
        if unseen:
            raise ConfigError(
                f"distill.trainable={self.trainable} trains weights from layer {unseen[0]} on, and distill=feature_mse "
                f"compares only hidden states up to the input of layer {last}. Use distill=output_kl."
            )

    def streams(self, student: Runner) -> set[int]:
        """What the layer after each interface reads in the dense model."""
        readers = {placed.site.reader for placed in student.edit.operators}
        return readers or {interface.reader for interface in student.edit.interfaces}

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Those streams themselves."""
        return {str(reader): stream for reader, stream in streams.items()}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """Mean over interfaces, tokens and channels; no layer after the last interface runs."""
        streams = student.streams(lesson.stream, lesson.calls, self.streams(student))
        errors = []
        for reader, stream in streams.items():
            precision = at_least_fp32(stream)
            target = lesson.targets[str(reader)].to(stream.device, precision)
            errors.append((stream.to(precision) - target).square().mean())
        return torch.stack(errors).mean()
