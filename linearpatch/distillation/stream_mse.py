"""Distillation of every stream after the interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linearpatch.distillation.chunks import at_least_fp32
from linearpatch.distillation.training import Lesson, Training
from linearpatch.models.decoder import Decoder
from linearpatch.models.runner import Runner
from linearpatch.models.units import LAYER, SUBLAYER
from linearpatch.models.weight_changes import ParameterName
from linearpatch.registry import component


@component("distill", "stream_mse", title="stream MSE")
@dataclass(frozen=True)
class StreamMSE(Training):
    """Squared error of what each layer that is left reads, and the final norm, relative to the token's own size.

    Each layer is asked to do what it did in the dense model, with all of the layers before it as they are by then. A
    few tokens have streams a hundred times as long as others, so an error counts by its share of the token's length.
    """

    allows_sublayers: ClassVar[bool] = False

    def check_student(self, student: Runner) -> None:
        """Reject removed sublayers: after their interfaces other streams are repaired than layers read."""
        super().check_student(student)
        self.check_unit(SUBLAYER if student.edit.removed_parts else LAYER)

    def sees(self, decoder: Decoder, name: ParameterName) -> bool:
        """Weights of layers: final norm and head come after the last stream."""
        return name.layer < decoder.num_layers

    def streams(self, student: Runner) -> set[int]:
        """Those of all layers that read something else than in the dense model, and of the final norm."""
        return {step.layer for step in student.steps if step.layer != student.entry}

    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Those streams themselves."""
        return {str(reader): stream for reader, stream in streams.items()}

    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """Mean over streams and tokens of ‖x̂ − x‖² / ‖x‖²; no logits are made."""
        errors = []
        for reader, stream in student.streams(lesson.stream, lesson.calls, self.streams(student)).items():
            precision = at_least_fp32(stream)
            target = lesson.targets[str(reader)].to(stream.device, precision)
            error = (stream.to(precision) - target).square().sum(dim=-1)
            errors.append((error / target.square().sum(dim=-1)).mean())
        return torch.stack(errors).mean()
