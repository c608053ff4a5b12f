"""Metrics as people read them: which to show, in which unit, measured how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linearpatch.choices import choice_of
from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.results.units import number_text

# An evaluation with more metrics than this (MMLU has 57 subjects) shows only its averages.
MOST_SHOWN = 24


def metric_names(records: Sequence[Record]) -> list[str]:
    """Metrics of some stage of some run by evaluation, averages last; of one with very many the averages alone."""
    metrics = {name: metric for name, metric in _metrics_of(records).items() if metric.has_data}
    by_evaluation: dict[str, list[str]] = {}
    for name in metrics:
        by_evaluation.setdefault(_evaluation(name), []).append(name)
    return [
        name
        for names in by_evaluation.values()
        for name in sorted(names, key=lambda name: bool(metrics[name].parts))
        if len(names) <= MOST_SHOWN or metrics[name].parts
    ]


def headline_names(records: Sequence[Record]) -> list[str]:
    """The metrics that stand for each evaluation; all of them where none was chosen to."""
    metrics = _metrics_of(records)
    chosen = {_evaluation(name) for name, metric in metrics.items() if metric.headline}
    shown = [name for name, metric in metrics.items() if metric.headline or _evaluation(name) not in chosen]
    return [name for name in shown if metrics[name].has_data]


def label(name: str, records: Sequence[Record]) -> str:
    """A metric's name, with the unit that its values are shown in."""
    return name + (" %" if _metrics_of(records)[name].unit == "share" else "")


def value_text(metric: Metric | None) -> str:
    """A metric's value with its standard error, in its unit; shares in percent.

    >>> value_text(Metric(0.5, 0.012, 100, "p", "", unit="share"))
    '50.00 ± 1.20'
    """
    if metric is None:
        return ""
    if metric.value is None:
        return "not finite" if str(metric.reason).startswith("the value is") else "unknown"
    return number_text(metric.value, metric.unit, metric.stderr, suffix=True)


def versus_text(metric: Metric | None, dense: Metric | None) -> str:
    """How a metric compares with that of dense: the difference with its interval where known, else the ratio."""
    if metric is None or metric.value is None:
        return ""
    versus = metric.versus.get("dense")
    if versus:
        return _versus_text(versus, metric.unit)
    if not dense or not dense.value:
        return ""
    same = (metric.protocol, metric.token_hash) == (dense.protocol, dense.token_hash)
    return f"{metric.value / dense.value:.2f} ×" if same else "different data"


def _versus_text(versus: Mapping[str, float], unit: str) -> str:
    """A difference, of shares in points, or a ratio, with its interval where that is known."""
    if "ratio" in versus:
        return f"{versus['ratio']:.2f} × [{versus['low']:.2f}, {versus['high']:.2f}]"
    if unit == "share":
        interval = f" [{100 * versus['low']:.1f}, {100 * versus['high']:.1f}]" if "low" in versus else ""
        return f"{100 * versus['difference']:+.1f}{interval}"
    interval = f" [{versus['low']:.3g}, {versus['high']:.3g}]" if "low" in versus else ""
    return f"{versus['difference']:+.3g}{interval}"


def retained_text(record: Record, stage: str, name: str, definition: str = "mean_of_ratios") -> str:
    """Retained performance of an average with its interval; LinearPatch's definition by default."""
    value = record.retained.get(stage, {}).get(definition, {}).get(name)
    if value is None:
        return ""
    known = value.low is not None and value.high is not None
    interval = f" [{100 * value.low:.1f}, {100 * value.high:.1f}]" if known else ""  # type: ignore[operator]
    return f"{100 * value.value:.1f}{interval}"


def how_measured(metric: Metric) -> str:
    """The protocol, and how much was counted."""
    return f"{metric.protocol}, {metric.n:,} {metric.counted}"


def notes(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """How the shown metrics were measured, and what readers of the numbers must know."""
    measured: dict[str, list[str]] = {}
    for record in records:
        for stage in record.metrics.values():
            for name in (name for name in names if name in stage):
                measured.setdefault(how_measured(stage[name]), []).append(name)
    lines = [
        f"{_in_short(list(dict.fromkeys(measured_names)))}: {protocol}" for protocol, measured_names in measured.items()
    ]
    if len(records) == 1:
        lines += _gains(records[0])
        lines += records[0].patch.warnings if records[0].patch else []
    return [*lines, *remarks(records)]


def remarks(records: Sequence[Record]) -> list[str]:
    """What readers of the numbers must know, however they were measured."""
    lines = _without_data(records)
    for record in records:
        if record.distillation and record.distillation.best_step == 0:
            lines.append("distilled: no training step improved the fitted patch, which was kept")
    for record in records:
        lines += [record.model.note or ""] if record.model else []
        lines += record.calibration.notes if record.calibration else []
    return list(dict.fromkeys(line for line in lines if line))


def _without_data(records: Sequence[Record]) -> list[str]:
    """Which tasks each evaluation had to leave out."""
    left: dict[str, list[str]] = {}
    for name, metric in _metrics_of(records).items():
        if not metric.has_data:
            left.setdefault(_evaluation(name), []).append(metric.protocol)
    return [f"{evaluation}: no data for {_listed(list(dict.fromkeys(tasks)))}" for evaluation, tasks in left.items()]


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} and {len(names) - 3} more tasks"


def _gains(record: Record) -> list[str]:
    """What the patch gains, what its distillation does, and what they cost, where both models did the same."""
    lines = []
    for name in headline_names([record]):
        for stage, base in (("patched", "pruned"), ("distilled", "patched")):
            metric = record.metrics.get(stage, {}).get(name)
            if metric and (versus := metric.versus.get(base)):
                compared = f"is worse than {base}:" if _is_worse(metric, versus) else f"against {base}"
                lines.append(f"{name}: {stage} {compared} {_versus_text(versus, metric.unit)}")
    return lines


def _is_worse(metric: Metric, versus: Mapping[str, float]) -> bool:
    """Whether a perplexity rose, or an accuracy fell, beyond its interval."""
    if "ratio" in versus:
        return versus["low"] > 1
    return metric.parts is not None and versus.get("high", 0.0) < 0


def _metrics_of(records: Sequence[Record]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for record in records:
        for stage in record.metrics.values():
            metrics |= {name: metric for name, metric in stage.items() if name not in metrics}
    return metrics


def chosen(record: Record, group: str, component: str) -> str:
    """What was typed for a pruner or a patch, as far as its settings show that: `refit_auto`, not `refit`."""
    settings = record.config.get(group)
    return choice_of(group, component, settings) if isinstance(settings, Mapping) else component


def _evaluation(name: str) -> str:
    return name.partition("/")[0]


def _in_short(names: Sequence[str]) -> str:
    """Names that share a line.

    >>> _in_short(["qa/arc_easy/acc", "qa/arc_easy/acc_norm"]), _in_short(["mmlu/other/acc", "mmlu/humanities/acc"])
    ('qa/arc_easy', 'mmlu/other/acc, mmlu/humanities/acc')
    """
    parts = [name.split("/") for name in names]
    common = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
    if len(names) > 1 and len(common) > 1 and parts[0][: len(common)] == common:
        return "/".join(common)
    return ", ".join(names) if len(names) <= 3 else f"{_evaluation(names[0])}/…"
