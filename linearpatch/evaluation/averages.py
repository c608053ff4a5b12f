"""What tasks are called in the record, and the averages over them that papers report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from linearpatch.evaluation.evaluation import Aggregate
from linearpatch.results.metric import Metric

Known = Mapping[str, Metric]  # metrics with a value, by name

# Each average takes the first of these metrics that a task has; `paper` is what the tables of the paper do.
AVERAGES: Mapping[str, Sequence[str]] = {"paper": ("acc_norm", "acc"), "acc": ("acc",), "acc_norm": ("acc_norm",)}

CHOICE = "choice"  # which answer was chosen at each question; no metric, so that it isn't averaged
FLIPS = "flips"  # the share of questions at which it isn't the dense model's


def metric_name(evaluation: str, task: str, metric: str) -> str:
    """Where the record keeps a metric.

    >>> metric_name("qa", "arc_easy", "acc")
    'qa/arc_easy/acc'
    >>> metric_name("mmlu", "mmlu_stem", "acc"), metric_name("mmlu", "mmlu", "acc")
    ('mmlu/stem/acc', 'mmlu/acc')
    """
    short = "" if task == evaluation else task.removeprefix(f"{evaluation}_")
    return "/".join(part for part in (evaluation, short, metric) if part)


def group_means(evaluation: str, group: str, tasks: Sequence[str], known: Known) -> Iterator[Aggregate]:
    """Means over all questions of a group's tasks; those of the group that has the evaluation's name stand for it."""
    whole = group == evaluation
    for kind in ("acc", "acc_norm"):
        names = [metric_name(evaluation, task, kind) for task in tasks]
        weights = _by_question([name for name in names if name in known], known)
        if weights:
            yield Aggregate(
                metric_name(evaluation, group, kind),
                weights,
                f"mean over the questions of {_count(weights, names)} tasks, {_harness(weights, known)}",
                pooled=True,
                retained=whole,
                headline=whole and kind == "acc",
            )


def task_means(evaluation: str, entries: Sequence[Sequence[str]], known: Known) -> Iterator[Aggregate]:
    """Unweighted means over what was asked for, `paper`, `acc` and `acc_norm`.

    Args:
        evaluation: First part of the metrics' names.
        entries: The tasks of each thing asked for: one, or those of a group, which count as one.
        known: The metrics.
    """
    for average, kinds in AVERAGES.items():
        parts: list[list[str]] = []
        for tasks in entries:
            candidates = [[metric_name(evaluation, task, kind) for task in tasks] for kind in kinds]
            parts += [names for names in candidates if all(name in known for name in names)][:1]
        shares = {name: share / len(parts) for names in parts for name, share in _by_question(names, known).items()}
        if shares:
            which = " where it exists, else ".join(kinds)
            protocol = f"{which}, mean over {_count(parts, entries)} tasks, {_harness(shares, known)}"
            yield Aggregate(f"{evaluation}/{average}", shares, protocol, retained=True, headline=average == "paper")


def _by_question(names: Sequence[str], known: Known) -> dict[str, float]:
    total = sum(known[name].n for name in names)
    return {name: known[name].n / total for name in names}


def _count(measured: Sequence[Any] | Mapping[str, float], asked: Sequence[Any]) -> str:
    return str(len(measured)) if len(measured) == len(asked) else f"{len(measured)} of {len(asked)}"


def _harness(names: Mapping[str, float], known: Known) -> str:
    """The first part of the tasks' protocols, which all share."""
    return known[next(iter(names))].protocol.partition(",")[0]
