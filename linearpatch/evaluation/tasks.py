"""Accuracy on tasks of lm_eval: question answering, MMLU, generation, or any others by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, require_choice, require_range
from linearpatch.evaluation.evaluation import Aggregate, Evaluation, Preparation
from linearpatch.memory import check_batch_size
from linearpatch.registry import component

MISSING_DATA = ("error", "skip")


@component("eval", "tasks")
@dataclass(frozen=True)
class Tasks(Evaluation):
    """Tasks of lm_eval on the model in memory; each task's results are cached by themselves.

    Attributes:
        tasks: Names of tasks, groups and tags.
        num_fewshot: Examples before each question; null takes each task's own number.
        limit: Only the first so many questions of each task; null takes all.
        include_path: A folder with tasks of your own.
        batch_size: Sequences in one forward pass; `auto` begins large and halves where memory runs out.
        max_length: Longer sequences lose their first tokens; null takes the model's limit.
        chat_template: Ask through the tokenizer's chat template, examples as turns of a conversation.
        system_instruction: Text before everything else.
        share_prefixes: Read what several requests begin with once; same results up to rounding.
        missing_data: `error` refuses to start where a task's data can't be had, `skip` goes on without the task.
    """

    tasks: list[str] = field(default_factory=list)
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    batch_size: Any = field(default="auto", metadata={"identity": False})  # OmegaConf has no union with str
    max_length: int | None = None
    chat_template: bool = False
    system_instruction: str | None = None
    share_prefixes: bool = field(default=True, metadata={"identity": False})
    missing_data: str = field(default="error", metadata={"identity": False})

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(
                "eval=tasks needs names of tasks, such as 'tasks=[arc_easy,hellaswag]'. `lm_eval ls tasks` prints all."
            )
        check_batch_size("batch_size of tasks", self.batch_size)
        require_choice("missing_data", self.missing_data, MISSING_DATA)
        for what, value, low in (
            ("num_fewshot", self.num_fewshot, 0), ("limit", self.limit, 1), ("max_length", self.max_length, 2),
        ):  # fmt: skip
            if value is not None:
                require_range(f"{what} of tasks", value, low=low)
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ConfigError(f"include_path={self.include_path} is not a folder (looked in {Path.cwd()}).")

    @property
    def own_folder(self) -> Path | None:
        """The folder with tasks beside those of lm_eval."""
        return Path(self.include_path).expanduser().resolve() if self.include_path else None

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Find the tasks and load their data; each is a measurement of its own."""
        from linearpatch.evaluation.harness.suite import prepare  # lm_eval takes seconds to import

        return prepare(self, name, reader.datasets_dir)

    def aggregates(self, name: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[Aggregate]:
        """Groups weighted by question; over several tasks `paper`, `acc` and `acc_norm`.

        `paper` takes `acc_norm` where a task has it and `acc` elsewhere, as the tables of the paper do.
        """
        from linearpatch.evaluation.harness.catalogue import select

        selection = select(tuple(self.tasks), self.own_folder)
        known = {metric: found for metric, found in metrics.items() if found["value"] is not None}
        aggregates: list[Aggregate] = []
        for group, members in selection.groups.items():
            for kind in ("acc", "acc_norm"):
                of_tasks = [metric_name(name, task, kind) for task in members]
                weights = _by_question([metric for metric in of_tasks if metric in known], known)
                if weights:
                    tasks = f"{_count(weights, of_tasks)} tasks, {_protocol(weights, known)}"
                    whole = group == name
                    aggregates.append(
                        Aggregate(
                            metric_name(name, group, kind),
                            weights,
                            f"mean over the questions of {tasks}",
                            pooled=True,
                            retained=whole,
                            headline=whole and kind == "acc",
                        )
                    )
        if len(selection.asked) > 1:
            entries = [tuple(selection.groups.get(asked, (asked,))) for asked in selection.asked]
            aggregates += _averages(name, entries, known)
        return aggregates


def metric_name(evaluation: str, task: str, metric: str) -> str:
    """Where the record keeps a metric.

    >>> metric_name("qa", "arc_easy", "acc")
    'qa/arc_easy/acc'
    >>> metric_name("mmlu", "mmlu_stem", "acc"), metric_name("mmlu", "mmlu", "acc")
    ('mmlu/stem/acc', 'mmlu/acc')
    """
    short = "" if task == evaluation else task.removeprefix(f"{evaluation}_")
    return "/".join(part for part in (evaluation, short, metric) if part)


def _averages(
    name: str, entries: Sequence[tuple[str, ...]], known: Mapping[str, Mapping[str, Any]]
) -> Iterator[Aggregate]:
    """Unweighted means over what was asked for, groups counting as one."""
    for average, kinds in {"paper": ("acc_norm", "acc"), "acc": ("acc",), "acc_norm": ("acc_norm",)}.items():
        parts = []
        for members in entries:
            candidates = [[metric_name(name, task, kind) for task in members] for kind in kinds]
            parts += [metrics for metrics in candidates if all(metric in known for metric in metrics)][:1]
        weights = {
            metric: weight / len(parts) for metrics in parts for metric, weight in _by_question(metrics, known).items()
        }
        if weights:
            which = {"paper": "acc_norm where it exists, else acc"}.get(average, average)
            protocol = f"{which}, mean over {_count(parts, entries)} tasks, {_protocol(weights, known)}"
            yield Aggregate(f"{name}/{average}", weights, protocol, retained=True, headline=average == "paper")


def _by_question(metrics: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    total = sum(known[metric]["n"] for metric in metrics)
    return {metric: known[metric]["n"] / total for metric in metrics}


def _count(found: Sequence[Any] | Mapping[str, float], asked: Sequence[Any]) -> str:
    return str(len(found)) if len(found) == len(asked) else f"{len(found)} of {len(asked)}"


def _protocol(weights: Mapping[str, float], known: Mapping[str, Mapping[str, Any]]) -> str:
    """What the protocols of several tasks have in common."""
    return str(known[next(iter(weights))]["protocol"]).partition(",")[0]
