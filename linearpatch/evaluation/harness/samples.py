"""pass@k of tasks that sample several answers to each question."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any


@dataclass(frozen=True)
class Samples:
    """What a metric of single answers gives at each question.

    Attributes:
        name: Of the metric, with that of the filter which extracts the answer.
        right: For each question, how many of its answers are right …
        total: … of how many.
        documents: The questions' numbers, in order.
    """

    name: str
    right: Sequence[int]
    total: int
    documents: Sequence[int]

    def pass_at(self, k: int) -> list[float]:
        """At each question, the probability that one of k answers drawn of those sampled is right."""
        return [pass_at_k(self.total, right, k) for right in self.right]

    @property
    def counts(self) -> list[int]:
        """The k that are reported: powers of two, and how many there are."""
        powers = [2**power for power in range(self.total.bit_length()) if 2**power < self.total]
        return [*powers, self.total]


def pass_at_k(total: int, right: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k), without bias (Chen et al., 2021).

    Args:
        total: n, answers sampled.
        right: c, those that are right.
        k: Of how many one must be right.
    """
    return 1 - comb(total - right, k) / comb(total, k)


def samples_of(task: Any) -> list[Samples]:
    """Every metric that is right or wrong, of each answer by itself; none where a task asks once.

    Answers are extracted by the task's first filter, applied to one at a time.

    Args:
        task: Of lm_eval, answered.
    """
    instances = {instance.doc_id: instance for instance in task.instances}
    total = min((len(instance.resps) for instance in instances.values()), default=1)
    if total < 2 or task.OUTPUT_TYPE != "generate_until" or len(instances) < len(task.instances):
        return []
    extract = task._filters[0]
    values: dict[str, list[list[Any]]] = {}
    documents = sorted(instances)
    for number in range(total):
        alone = [_with_answer(instances[document], number) for document in documents]
        extract.apply(alone)
        for place, instance in enumerate(alone):
            scores: Mapping[str, Any] = task.process_results(instance.doc, [instance.filtered_resps[extract.name]])
            for metric, value in scores.items():
                values.setdefault(metric, [[] for _ in documents])[place].append(value)
    name = "" if extract.name == "none" else f"/{extract.name}"
    return [
        Samples(f"{metric}{name}", [int(sum(each)) for each in scores], total, documents)
        for metric, scores in values.items()
        if all(len(each) == total and set(each) <= {0, 1} for each in scores)
    ]


def _with_answer(instance: Any, number: int) -> Any:
    """A request that was answered once, by one of its answers."""
    alone = copy.copy(instance)
    alone.resps, alone.filtered_resps = [instance.resps[number]], {}
    return alone
