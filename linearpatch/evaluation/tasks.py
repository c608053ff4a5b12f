"""Accuracy on tasks of lm_eval: question answering, MMLU, generation, or any others by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearpatch.data.reader import Reader
from linearpatch.evaluation.averages import group_means, task_means
from linearpatch.evaluation.evaluation import Aggregate, Evaluation, Preparation
from linearpatch.evaluation.harness.task_settings import Asking
from linearpatch.registry import component


@dataclass(frozen=True)
class Extent:
    """How much there is to ask under a name, roughly.

    Attributes:
        questions: In all of its tasks.
        tasks: How many tasks it has.
        tokens: Of a question with its answers.
    """

    questions: int = 2_000
    tasks: int = 1
    tokens: int = 160


KNOWN = {
    "arc_challenge": Extent(1_172), "arc_easy": Extent(2_376), "boolq": Extent(3_270), "hellaswag": Extent(10_042),
    "piqa": Extent(1_838), "winogrande": Extent(1_267), "wsc273": Extent(273), "race": Extent(1_045),
    "copa": Extent(100), "mmlu": Extent(14_042, tasks=57), "smoke": Extent(206, tasks=4, tokens=30),
}  # fmt: skip


@component("eval", "tasks")
@dataclass(frozen=True)
class Tasks(Asking, Evaluation):
    """Tasks of lm_eval on the model in memory; each task's results are cached by themselves."""

    def rough_tokens(self, reader: Reader) -> int:
        """All questions, or as many as are asked of each task, with their answers and the examples shown."""
        examples = 100 * (self.num_fewshot or 0)
        total = 0
        for extent in (KNOWN.get(task, Extent()) for task in self.tasks):
            questions = min(extent.questions, self.limit * extent.tasks) if self.limit else extent.questions
            total += questions * (extent.tokens + examples)
        return total

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Find the tasks and load their data; each is a measurement of its own."""
        from linearpatch.evaluation.harness.suite import prepare  # lm_eval takes seconds to import

        return prepare(self, name, reader.datasets_dir)

    def aggregates(self, name: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[Aggregate]:
        """Groups weighted by question; over several tasks `paper`, `acc` and `acc_norm`."""
        from linearpatch.evaluation.harness.catalogue import select

        selection = select(tuple(self.tasks), self.own_folder)
        known = {metric: found for metric, found in metrics.items() if found["value"] is not None}
        means = [mean for group, tasks in selection.groups.items() for mean in group_means(name, group, tasks, known)]
        if len(selection.asked) > 1:
            entries = [tuple(selection.groups.get(asked, (asked,))) for asked in selection.asked]
            means += task_means(name, entries, known)
        return means
