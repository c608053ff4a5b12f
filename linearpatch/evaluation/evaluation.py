"""What every evaluation is: settings that become measurements, which any stage's model then undergoes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.model import LoadedModel
from linearpatch.results.metric import Metric
from linearpatch.storage.cache import Cache


@dataclass(frozen=True)
class Measured:
    """What one measurement found on one model.

    Attributes:
        metrics: By name, such as `qa/arc_easy/acc`.
        questions: For metrics that are means over questions, the value at each, `[n]`, by the metric's name.
        documents: Which questions these are: a hash of each one's text, int64 `[n]`, by the metric's name.
        arrays: Small arrays for plots, by name.
    """

    metrics: Mapping[str, Metric]
    questions: Mapping[str, Tensor] = field(default_factory=dict)
    documents: Mapping[str, Tensor] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model under measurement.

    Attributes:
        stage: `dense`, `pruned`, `patched` or `distilled`.
        decoder: The model; all subjects of a run share their weights.
        dense: The model that it came from; itself at stage `dense`.
        edit: What makes it of that.
    """

    stage: str
    decoder: Decoder
    dense: Decoder
    edit: Edit = DENSE

    @property
    def removed(self) -> Sequence[int]:
        """Dense indices of the layers that it lacks."""
        return self.edit.removed_layers


@dataclass(frozen=True)
class Measurement:
    """One thing to measure: the perplexity of a corpus, the accuracy on a task. Each is cached by itself.

    Attributes:
        name: Such as `qa/arc_easy`.
        key: What its results depend on beside the models.
        total: Steps that one call of `run` takes.
        run: Measures models, one answer for each; calls its second argument with the number of steps done.
        together: Whether it takes the models of all stages in one call, or each alone.
    """

    name: str
    key: Mapping[str, Any]
    total: float
    run: Callable[[Sequence[Subject], Callable[[float], None]], Sequence[Measured]]
    together: bool = False


@dataclass(frozen=True)
class Aggregate:
    """A weighted mean of metrics that are means over questions.

    Attributes:
        name: Such as `qa/paper`.
        weights: Weight of each metric in it; they sum to one.
        protocol: What it is, in words.
        pooled: Whether it is the mean over all their questions in one heap, so that weights follow their numbers.
        retained: Whether retained performance is computed for it.
        headline: Whether short tables show it.
    """

    name: str
    weights: Mapping[str, float]
    protocol: str
    pooled: bool = False
    retained: bool = False
    headline: bool = False


# Makes the measurements, given the dense model and what is kept of it.
Preparation = Callable[[LoadedModel, Cache], Sequence[Measurement]]


@dataclass(frozen=True)
class Evaluation(ABC):
    """Measures models."""

    version: ClassVar[int] = 1
    without_dense: ClassVar[str] = ""  # the setting with which it needs no dense model, if there is one

    @property
    def needs_stock_models(self) -> bool:
        """Whether it measures ordinary models of a family alone."""
        return False

    @property
    def needs_dense(self) -> bool:
        """Whether it says nothing of a model without the dense one."""
        return False

    @abstractmethod
    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Read what is needed, so that missing data is known before a model is loaded.

        Args:
            name: First part of the names of its metrics.
            reader: The run's evaluation corpus.
        """

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """The texts it reads, given the run's evaluation corpus."""
        return ()

    def spec(self, name: str) -> BlockSpec | None:
        """How it cuts its texts, under the name it was given; None where it reads none."""
        return None

    def metrics_of_texts(self, reader: Reader) -> tuple[str, ...]:
        """Names of the metrics that are called after a text, not after the evaluation, so that two could share one."""
        return ()

    def aggregates(self, name: str, metrics: Mapping[str, Metric]) -> Sequence[Aggregate]:
        """Means over what it measured, given the metrics of one stage as the record holds them."""
        return ()


def check_stock(evaluations: Mapping[str, Evaluation], stages: Sequence[str], *, foldable: bool) -> None:
    """Reject evaluations of stock models where a stage's model is none.

    Args:
        evaluations: By name.
        stages: Those that are measured.
        foldable: Whether the patch can become a part of a stock model's weights.

    Raises:
        ConfigError: names the evaluation and the stage.
    """
    patched = [stage for stage in stages if stage in ("patched", "distilled")]
    for name, evaluation in evaluations.items():
        if evaluation.needs_stock_models and patched and not foldable:
            raise ConfigError(
                f"eval.{name} measures stock models alone, and the patch of the {patched[0]} one is a module of its "
                f"own. Use a patch that folds into weights (mlp_refit, block, mlp_lstsq, scalar), "
                f"eval.{name}.backend=memory, or leave that stage out of stages."
            )


def check_metrics(evaluations: Mapping[str, Evaluation], reader: Reader) -> None:
    """Reject two evaluations of which one would overwrite a metric of the other.

    Raises:
        ConfigError: they measure the same text under the same name.
    """
    owners: dict[str, str] = {}
    for name, evaluation in evaluations.items():
        for metric in evaluation.metrics_of_texts(reader):
            if metric in owners:
                raise ConfigError(
                    f"eval.{owners[metric]} and eval.{name} both measure {metric}. Leave one of them out of "
                    f"eval=[{','.join(evaluations)}], or give one a corpus of another name."
                )
            owners[metric] = name
