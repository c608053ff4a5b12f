"""What a pruned model keeps: averages over tasks, differences from dense with intervals, retained performance.

Intervals are 95 % percentile intervals of the paired bootstrap: questions are drawn with replacement within each task,
and both models answer the same draw.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from linearpatch.evaluation.averages import CHOICE, FLIPS
from linearpatch.evaluation.evaluation import Aggregate, Evaluation
from linearpatch.results.metric import Metric, Retained
from linearpatch.results.stages import stages_before
from linearpatch.storage.cache import digest_of
from linearpatch.text import some_of

log = logging.getLogger(__name__)

RESAMPLES = 10_000
CONFIDENCE = 0.95
CLEARLY = 2.0  # standard errors by which a task's accuracy is above chance
SEED = 0
MEMORY = 2**24  # counts that exist at a time

Floats = NDArray[numpy.float64]
RetainedBy = dict[str, dict[str, Retained]]  # definition and average
# Of dense and another model: numbers or draws, the tasks' weights, and what guessing gives.
Formula = Callable[[Sequence[Any], Sequence[Any], Sequence[float], Sequence[float]], Any]


def mean_of_ratios(
    dense: Sequence[Any], other: Sequence[Any], weights: Sequence[float], chances: Sequence[float] = ()
) -> Any:
    """Retained performance as LinearPatch defines it: the mean of each task's share of dense.

    >>> round(mean_of_ratios([0.8, 0.5], [0.4, 0.5], [0.5, 0.5]), 3)
    0.75
    """
    return sum(weight * value / base for weight, value, base in zip(weights, other, dense, strict=True))


def ratio_of_means(
    dense: Sequence[Any], other: Sequence[Any], weights: Sequence[float], chances: Sequence[float] = ()
) -> Any:
    """Retained performance as Prune&Comp defines it: the mean's share of dense's mean.

    >>> round(ratio_of_means([0.8, 0.5], [0.4, 0.5], [0.5, 0.5]), 3)
    0.692
    """
    mean, base = (sum(w * v for w, v in zip(weights, values, strict=True)) for values in (other, dense))
    return mean / base


def above_chance(dense: Sequence[Any], other: Sequence[Any], weights: Sequence[float], chances: Sequence[float]) -> Any:
    """The mean of each task's share of what dense has above guessing: a model that guesses retains nothing.

    >>> round(above_chance([0.75, 0.5], [0.5, 0.5], [0.5, 0.5], [0.25, 0.25]), 3)
    0.75
    """
    parts = zip(weights, other, dense, chances, strict=True)
    return sum(weight * (value - chance) / (base - chance) for weight, value, base, chance in parts)


FORMULAS: Mapping[str, Formula] = {  # of `results.metric.DEFINITIONS`
    "mean_of_ratios": mean_of_ratios,
    "ratio_of_means": ratio_of_means,
    "above_chance": above_chance,
}


@dataclass(frozen=True)
class Results:
    """What one stage gave.

    Attributes:
        metrics: As the record holds them, by name.
        answers: What each question gave, `[questions]`, by metric.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    answers: dict[str, Floats] = field(default_factory=dict)


def compare(stages: Mapping[str, Results], evaluations: Mapping[str, Evaluation]) -> dict[str, RetainedBy]:
    """Add averages, and differences between stages (`versus`), to the metrics of all stages.

    Args:
        stages: By name; their metrics are changed.
        evaluations: By the first part of their metrics' names.

    Returns:
        Retained performance of each stage but dense.
    """
    kept: dict[str, RetainedBy] = {}
    for results in stages.values():
        for name, metric in results.metrics.items():  # those of an earlier run may be of other questions
            ratios = {base: found for base, found in metric.versus.items() if "ratio" in found}
            results.metrics[name] = replace(metric, versus=ratios)
    for stage, results in stages.items():
        if stage != "dense":
            add_flips(stages.get("dense", Results()), results)
        aggregates = [a for name, one in evaluations.items() for a in one.aggregates(name, results.metrics)]
        results.metrics.update({aggregate.name: average(results, aggregate) for aggregate in aggregates})
        for base in stages_before(stage):
            _warn_of_other_questions(stages.get(base, Results()), results, base, stage)
            for name, difference in differences(stages.get(base, Results()), results, aggregates).items():
                metric = results.metrics[name]
                results.metrics[name] = replace(metric, versus={**metric.versus, base: difference})
        if stage != "dense" and (values := retained(stages.get("dense", Results()), results, aggregates)):
            kept[stage] = values
        if stage == "dense" and len(stages) > 1:
            _warn_of_undefined(results, aggregates)
    return kept


def add_flips(dense: Results, other: Results) -> None:
    """Add the share of questions at which a model chooses another answer than the dense one, right or wrong.

    A pruned model may lose as many right answers as it gains by luck; its accuracy hides both, flips don't.
    """
    for name in [name for name in other.answers if name.rpartition("/")[2] == CHOICE and name in dense.answers]:
        task = name.rpartition("/")[0]
        accuracy = f"{task}/acc"
        if not _same_questions([accuracy], dense, other):
            continue
        flipped = (dense.answers[name] != other.answers[name]).astype(numpy.float64)
        stderr = float(flipped.std(ddof=1) / len(flipped) ** 0.5) if len(flipped) > 1 else None
        measured = other.metrics[accuracy]
        other.answers[f"{task}/{FLIPS}"] = flipped
        other.metrics[f"{task}/{FLIPS}"] = Metric.of(
            float(flipped.mean()), stderr, len(flipped), f"{measured.protocol}, answers other than dense's",
            measured.token_hash, unit="share", counted="questions",
        )  # fmt: skip


def _warn_of_undefined(dense: Results, aggregates: Sequence[Aggregate]) -> None:
    """Say of which averages nothing can be retained."""
    for aggregate in aggregates:
        zero = [part for part in aggregate.weights if not dense.metrics[part].value]
        if aggregate.retained and zero:
            why = "undefined: the dense model's accuracy is 0"
            log.warning("retained performance of %s is %s in %s", aggregate.name, why, ", ".join(zero))


def _warn_of_other_questions(base: Results, other: Results, base_name: str, name: str) -> None:
    """Say which metrics two stages have but can't be compared in."""
    both = [metric for metric in other.answers if metric in base.answers and metric in base.metrics]
    apart = [metric for metric in both if not _same_questions([metric], base, other)]
    if apart:
        log.warning(
            "%s and %s answered different questions in %s and aren't compared. Measure both in one run.",
            base_name,
            name,
            some_of(apart, 3),
        )


def average(results: Results, aggregate: Aggregate) -> Metric:
    """A weighted mean of metrics, as the record holds it.

    Its standard error is that of the questions in one heap where they are pooled, else that of independent tasks.
    """
    parts = [(weight, results.metrics[name]) for name, weight in aggregate.weights.items()]
    stderr = None
    if aggregate.pooled and all(name in results.answers for name in aggregate.weights):
        heap = numpy.concatenate([results.answers[name] for name in aggregate.weights])
        stderr = float(heap.std(ddof=1) / len(heap) ** 0.5) if len(heap) > 1 else None
    elif all(part.stderr is not None for _, part in parts):
        stderr = float(sum((weight * (part.stderr or 0)) ** 2 for weight, part in parts) ** 0.5)
    hashes = {name: results.metrics[name].token_hash for name in aggregate.weights}
    first = parts[0][1]
    return Metric(
        sum(weight * _number(part) for weight, part in parts),
        stderr,
        sum(part.n for _, part in parts),
        aggregate.protocol,
        digest_of(hashes)[:16],
        first.unit,
        first.counted,
        aggregate.headline,
        parts=list(aggregate.weights),
    )


def _number(metric: Metric) -> float:
    """A value that is known to be there: averages are over such metrics alone."""
    assert metric.value is not None
    return metric.value


def differences(base: Results, other: Results, aggregates: Sequence[Aggregate]) -> dict[str, dict[str, float]]:
    """How far each metric of a stage is from that of another, where both answered the same questions."""
    found = {
        name: _difference(base, other, {name: 1.0}, pooled=True)
        for name in other.answers
        if _paired([name], base, other)
    }
    for aggregate in aggregates:
        if _paired(aggregate.weights, base, other):
            found[aggregate.name] = _difference(base, other, aggregate.weights, pooled=aggregate.pooled)
    return found


def retained(dense: Results, other: Results, aggregates: Sequence[Aggregate]) -> RetainedBy:
    """Retained performance in each definition, for the averages that ask for it, as fractions.

    That above chance is left out where no task is a choice, or the dense model isn't clearly better than guessing at
    one, so that its ratio there could be anything.
    """
    found: RetainedBy = {definition: {} for definition in FORMULAS}
    for aggregate in aggregates:
        names, weights = list(aggregate.weights), list(aggregate.weights.values())
        if not aggregate.retained or not _same_questions(names, dense, other):
            continue
        bases, values = ([_number(results.metrics[name]) for name in names] for results in (dense, other))
        if not all(bases):
            continue
        chances = [dense.metrics[name].chance or 0.0 for name in names]
        errors = [CLEARLY * (dense.metrics[name].stderr or 0.0) for name in names]
        is_above = any(chances) and all(
            base - error > chance for base, error, chance in zip(bases, errors, chances, strict=True)
        )
        drawn = _paired(names, dense, other) and all(len(dense.answers[name]) > 1 for name in names)
        generator = numpy.random.default_rng(SEED)  # one for all tasks: their draws are independent
        draws = [resampled_means(dense.answers[n], other.answers[n], generator) for n in names] if drawn else []
        for definition, formula in FORMULAS.items():
            if formula is above_chance and not is_above:
                continue
            interval = {}
            if drawn:
                with numpy.errstate(divide="ignore", invalid="ignore"):
                    first, second = [draw[0] for draw in draws], [draw[1] for draw in draws]
                    interval = _interval(formula(first, second, weights, chances))
            found[definition][aggregate.name] = Retained(formula(bases, values, weights, chances), **interval)
    return {definition: values for definition, values in found.items() if values}


def resampled_means(
    first: Floats, second: Floats, generator: numpy.random.Generator, resamples: int = RESAMPLES
) -> Floats:
    """Means of two models' answers to the same random draws of questions, `[2, resamples]`.

    Drawing questions with replacement is drawing how often each distinct pair of answers occurs: right and wrong
    answers make four pairs, however many questions there are.
    """
    pairs, counts = numpy.unique(numpy.stack([first, second], axis=1), axis=0, return_counts=True)
    at_once = max(1, MEMORY // len(pairs))
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    drawn = [generator.multinomial(len(first), counts / len(first), size=size) @ pairs for size in sizes]
    means: Floats = numpy.concatenate(drawn).T / len(first)
    return means


def _difference(base: Results, other: Results, weights: Mapping[str, float], *, pooled: bool) -> dict[str, float]:
    value = sum(w * (_number(other.metrics[n]) - _number(base.metrics[n])) for n, w in weights.items())
    pairs = [(base.answers[name], other.answers[name]) for name in weights]
    if pooled:
        pairs = [(numpy.concatenate([first for first, _ in pairs]), numpy.concatenate([second for _, second in pairs]))]
    if min(len(first) for first, _ in pairs) < 2:  # one question has no spread to draw from
        return {"difference": value}
    shares = [1.0] if pooled else list(weights.values())
    generator = numpy.random.default_rng(SEED)
    means = [resampled_means(first, second, generator) for first, second in pairs]
    return {"difference": value, **_interval(sum(w * (m[1] - m[0]) for w, m in zip(shares, means, strict=True)))}


def _interval(draws: Any) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(draws, [tail, 1 - tail])
    if low == high or not (numpy.isfinite(low) and numpy.isfinite(high)):
        return {}  # nothing differs that could be drawn; or dense fails all questions of some draw
    return {"low": float(low), "high": float(high)}


def _paired(names: Iterable[str], base: Results, other: Results) -> bool:
    names = list(names)
    answered = all(name in results.answers for name in names for results in (base, other))
    return answered and _same_questions(names, base, other)


def _same_questions(names: Iterable[str], base: Results, other: Results) -> bool:
    return all(
        name in base.metrics and name in other.metrics and base.metrics[name].is_comparable(other.metrics[name])
        for name in names
    )
