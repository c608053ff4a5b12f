"""Training of a few layers on the stream that they must produce; the rest of the model doesn't run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from linearpatch.calibration.candidate_edits import ready
from linearpatch.calibration.gram import PairGram
from linearpatch.calibration.statistics import LayerInput
from linearpatch.distillation.chunks import at_least_fp32
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.edit import Edit
from linearpatch.models.passes import record
from linearpatch.models.runner import Runner
from linearpatch.runtime.progress import steps

log = logging.getLogger(__name__)

CHECKS = 10  # how often the error on held-out tokens is measured
PATIENCE = 3  # after so many of them without a lower one, training stops
LEAST_RATE = 0.05  # of the learning rate, at the end of its cosine
MAX_NORM = 1.0  # of a step's gradients


@dataclass(frozen=True)
class LocalLesson:
    """A batch, in the computer's memory.

    Attributes:
        stream: What the first of the layers reads, `[blocks, tokens, hidden_size]` in the model's dtype.
        target: What the layer after the last of them is to read.
        weight: Of each token's squared error, `[blocks, tokens]` in fp32; they sum to 1 over the squared target.
        calls: What each layer is given beside the stream.
    """

    stream: Tensor
    target: Tensor
    weight: Tensor
    calls: Mapping[int, LayerCall]


@torch.no_grad()
def lessons_of(
    decoder: Decoder, batches: Sequence[Tensor], before: Edit, first: int, reader: int, gram: PairGram
) -> list[LocalLesson]:
    """Record, in one pass up to the reader, what some layers read and must produce.

    Args:
        decoder: The dense model.
        batches: Token ids.
        before: What the model has lost and changed before the first layer; nothing: the dense model's stream.
        first: The first layer that runs.
        reader: Reads what they produce.
        gram: Says how tokens are weighted.
    """
    runner = Runner(decoder, ready(before, decoder))
    lessons = []
    with steps("streams", len(batches)) as on_step:
        for batch in batches:
            begin = min(runner.entry, first)
            recording = record(decoder, batch, {begin, reader})
            stream, target = recording.streams[begin], recording.streams[reader]
            if begin < first:
                stream = runner.streams(stream, recording.calls, {first})[first]
            tokens = LayerInput(reader, target)
            energy = tokens.norms.double().square()[:, None]
            weight = gram.weights(tokens, energy)
            weight = torch.ones_like(energy) if weight is None else weight
            weight = (weight / (weight * energy).sum()).float().view(target.shape[:2])
            calls = {layer: call for layer, call in recording.calls.items() if first <= layer < reader}
            lessons.append(LocalLesson(stream.cpu(), target.cpu(), weight, calls))
            on_step()
    return lessons


@dataclass
class LocalTraining:
    """Gradient descent on the error of the stream that a reader gets; the weights with the lowest one are kept.

    Attributes:
        student: Runs the layers; what requires gradients in its edit trains.
        reader: Whose stream is compared.
        lessons: What is trained on, one a step.
        checks: What decides which step is best.
        num_steps: At most.
        learning_rate: Of AdamW at the beginning.
        step: Steps done.
        first_error: On the checks, before the first step: Σ w ‖x̂ − y‖² / Σ w ‖y‖².
        best_error: The lowest one …
        best_step: … and after which step that was.
    """

    student: Runner
    reader: int
    lessons: Sequence[LocalLesson]
    checks: Sequence[LocalLesson]
    num_steps: int
    learning_rate: float
    step: int = 0
    first_error: float = math.inf
    best_error: float = math.inf
    best_step: int = 0
    parameters: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        edit = self.student.edit
        modules = [*(placed.module for placed in edit.operators), *edit.weights.values()]
        self.parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]

    def run(self) -> None:
        """Train; the student ends as it was best."""
        optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)
        schedule = CosineAnnealingLR(optimizer, self.num_steps, eta_min=LEAST_RATE * self.learning_rate)
        decoder = self.student.decoder
        scaler = torch.amp.GradScaler(decoder.input_device.type, enabled=decoder.model.dtype == torch.float16)
        self.first_error = self.best_error = self.error()
        best = self._copies()
        every = math.ceil(self.num_steps / CHECKS)
        order = order_of(len(self.lessons), self.num_steps)
        with steps("block repair", self.num_steps) as on_step:
            for index in order:
                loss = self._loss(self.lessons[index])
                if not math.isfinite(loss.item()):
                    log.warning(
                        "patch=block: the error isn't finite at step %d; the best weights before it are kept. Use a "
                        "lower patch.learning_rate (now %g).", self.step + 1, self.learning_rate,
                    )  # fmt: skip
                    break
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                self.step += 1
                on_step()
                if self.step % every == 0 or self.step == self.num_steps:
                    error = self.error()
                    log.debug("block repair: held-out error %.5f after step %d", error, self.step)
                    if error < self.best_error:
                        self.best_error, self.best_step, best = error, self.step, self._copies()
                    elif self.step - self.best_step >= PATIENCE * every:
                        break
        with torch.no_grad():
            for weight, value in zip(self.parameters, best, strict=True):
                weight.copy_(value)

    @torch.no_grad()
    def error(self) -> float:
        """Mean over the checks."""
        return math.fsum(self._loss(lesson).item() for lesson in self.checks) / len(self.checks)

    def _loss(self, lesson: LocalLesson) -> Tensor:
        device = self.student.decoder.input_device
        streams = self.student.streams(lesson.stream.to(device), lesson.calls, {self.reader})
        produced = streams[self.reader]
        precision = at_least_fp32(produced)
        error = (produced.to(precision) - lesson.target.to(device, precision)).square().sum(dim=-1)
        return (lesson.weight.to(device, precision) * error).sum()

    def _copies(self) -> list[Tensor]:
        return [weight.detach().to("cpu", copy=True) for weight in self.parameters]


def order_of(lessons: int, num_steps: int) -> list[int]:
    """Which lesson each step takes: all of them in random order, and again."""
    generator = torch.Generator().manual_seed(0)
    epochs = math.ceil(num_steps / lessons)
    order = [index for _ in range(epochs) for index in torch.randperm(lessons, generator=generator).tolist()]
    return order[:num_steps]
