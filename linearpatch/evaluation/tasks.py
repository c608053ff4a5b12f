"""Accuracy on tasks of lm_eval: question answering, MMLU, generation, or any others by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearpatch.data.reader import Reader
from linearpatch.evaluation.averages import group_means, task_means
from linearpatch.evaluation.evaluation import Aggregate, Evaluation, Preparation
from linearpatch.evaluation.harness.asking import Asking
from linearpatch.registry import component

# How many questions the best known have, for estimates.
QUESTIONS = {
    "arc_challenge": 1_172, "arc_easy": 2_376, "boolq": 3_270, "hellaswag": 10_042, "piqa": 1_838, "winogrande": 1_267,
    "wsc273": 273, "race": 1_045, "copa": 100, "mmlu": 14_042, "smoke": 206,
}  # fmt: skip
MEMBERS = {"mmlu": 57, "smoke": 4}  # tasks in a group
TOKENS = {"smoke": 30}  # of a question with its answers


@component("eval", "tasks")
@dataclass(frozen=True)
class Tasks(Asking, Evaluation):
    """Tasks of lm_eval on the model in memory; each task's results are cached by themselves."""

    def rough_tokens(self, reader: Reader) -> int:
        """Questions as far as known, else 2,000 a task; their tokens with the answers and the examples shown."""
        total = 0
        for task in self.tasks:
            questions = QUESTIONS.get(task, 2000)
            if self.limit is not None:
                questions = min(questions, self.limit * MEMBERS.get(task, 1))
            total += questions * (TOKENS.get(task, 160) + 100 * (self.num_fewshot or 0))
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
