"""Accuracy on tasks of lm_eval: question answering, MMLU, generation, or any others by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from linearpatch.data.reader import Reader
from linearpatch.evaluation.averages import group_means, task_means
from linearpatch.evaluation.evaluation import Aggregate, Evaluation, Preparation
from linearpatch.evaluation.harness.task_settings import TaskSettings
from linearpatch.registry import component
from linearpatch.results.metric import Metric


@component("eval", "tasks")
@dataclass(frozen=True)
class Tasks(TaskSettings, Evaluation):
    """Tasks of lm_eval on the model in memory; each task's results are cached by themselves."""

    @property
    def needs_stock_models(self) -> bool:
        """Those that vLLM serves."""
        return self.backend == "vllm"

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Find the tasks and load their data; each is a measurement of its own."""
        from linearpatch.evaluation.harness.suite import prepare  # lm_eval takes seconds to import

        return prepare(self, name, reader.datasets_dir)

    def aggregates(self, name: str, metrics: Mapping[str, Metric]) -> list[Aggregate]:
        """Groups weighted by question; over several tasks `paper`, `acc` and `acc_norm`."""
        from linearpatch.evaluation.harness.catalogue import select

        selection = select(tuple(self.tasks), self.own_folder)
        known = {metric: found for metric, found in metrics.items() if found.value is not None}
        means = [mean for group, tasks in selection.groups.items() for mean in group_means(name, group, tasks, known)]
        if len(selection.asked) > 1:
            entries = [tuple(selection.groups.get(asked, (asked,))) for asked in selection.asked]
            means += task_means(name, entries, known)
        return means
