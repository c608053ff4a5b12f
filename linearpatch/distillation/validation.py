"""The loss on sequences that aren't trained on, which decides the weights that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from linearpatch.distillation.sharding import own_batches
from linearpatch.distillation.sources import Source
from linearpatch.distillation.training import Lesson, Training
from linearpatch.models.runner import Runner
from linearpatch.runtime.distributed import Workers

MOST_BYTES = 2**30  # lessons that are kept in memory


class Validation:
    """Validation sequences, one at a time; their lessons are made once where memory suffices.

    Args:
        training: Loss and settings.
        student: What is trained.
        source: Lessons of the training sequences, followed by those of the validation sequences.
        rows: The latter's.
        workers: Processes that share them.
    """

    def __init__(
        self, training: Training, student: Runner, source: Source, rows: Sequence[int], workers: Workers
    ) -> None:
        self._training = training
        self._student = student
        self._source = source
        self._rows = rows
        self._workers = workers
        self._kept: list[Lesson] = []

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over all sequences of all processes."""
        batches = own_batches(self._rows, 1, self._workers, equally_often=self._training.sharded)
        total = torch.zeros((), dtype=torch.float64)
        for lesson, (_, share) in zip(self._lessons([row for (row,), _ in batches]), batches, strict=True):
            total += self._training.loss(self._student, lesson).cpu().double() * share
        return float(self._workers.sum(total))

    def _lessons(self, rows: Sequence[int]) -> Iterator[Lesson]:
        """Lessons of one sequence each, the same ones each time since the teacher stays the same."""
        yield from self._kept
        for row in rows[len(self._kept) :]:
            lesson = self._source.lesson([row])
            size = sum(values.nbytes for values in (lesson.stream, *lesson.targets.values()))
            if len(rows) * size <= MOST_BYTES:
                self._kept.append(lesson)
            yield lesson
