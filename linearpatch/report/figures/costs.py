"""Quality against what a model costs: parameters, latency, memory; with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from linearpatch.report.figures.quality import highlighted
from linearpatch.report.figures.series import Quality, by_model, looks_of, measured_alike, measured_how, qualities
from linearpatch.report.figures.style import (
    GREY,
    INK,
    Drawing,
    Look,
    label_points,
    legend,
    log_scale,
    panels,
    short,
)
from linearpatch.report.layouts import cost_columns
from linearpatch.report.names import removed_words
from linearpatch.report.quantities import Entry
from linearpatch.report.tables import Column
from linearpatch.results.units import unit_of


def against_costs(entries: Sequence[Entry]) -> list[Drawing]:
    """For each model its first perplexity and its first average, with a panel for each cost that differs."""
    drawings = []
    for model, own in by_model(entries).items():
        looks, costs = looks_of(own), cost_columns([row for entry in own for row in entry.rows])
        chosen: dict[bool, Quality] = {}  # a perplexity and a share stand for all
        for quality in qualities(own):
            chosen.setdefault(quality.lower_is_better, quality)
        for quality in chosen.values():
            alike = measured_alike(own, quality.quantity)
            if alike:
                drawing = _figure(model, quality, alike[0], looks, costs)
                drawings += [drawing] if drawing else []
    return drawings


def pareto(points: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[int]:
    """Indices of the points that no other one beats in both: as cheap and better, or as good and cheaper.

    >>> pareto([(1, 5), (2, 3), (3, 4), (4, 1)], lower_is_better=True)
    [0, 1, 3]
    """
    sign = 1 if lower_is_better else -1
    front: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], sign * points[at][1])):
        if not front or sign * points[at][1] < sign * points[front[-1]][1]:
            front.append(at)
    return front


def _figure(
    model: str, quality: Quality, entries: Sequence[Entry], looks: dict[str, Look], costs: Sequence[Column]
) -> Drawing | None:
    shown = []
    for column in costs:
        groups = measured_alike(entries, column.quantity)
        if groups and len({value.mean for entry in groups[0] if (value := entry.value(column.quantity))}) > 1:
            shown.append((column, groups[0]))
    if not shown:
        return None
    names = highlighted(quality, [entry for _, own in shown for entry in own])
    every = list(dict.fromkeys(entry.name for _, own in shown for entry in own if not entry.is_dense))
    figure, axes = panels(len(shown), size=(3.7, 3.1), sharey=True)
    labels = []
    for axis, (column, own) in zip(axes, shown, strict=True):
        labels.append(_panel(axis, quality, own, column, {name: looks[name] for name in names}, every))
    axes[0].set_ylabel(short(quality.title, 60))
    has_dense = any(entry.is_dense for _, own in shown for entry in own)
    samples = [looks[name].line(linestyle="") for name in names]
    samples += [Line2D([], [], color=INK, marker="X", linestyle="")] if has_dense else []
    front = Line2D([], [], color=GREY, linewidth=1)
    texts = [*names, *(["dense"] if has_dense else []), "Pareto front"]
    legend(figure, [*samples, front], texts, beside=len(shown) == 1)
    _place(figure, axes, labels)
    caption = (
        f"{model}: {quality.title}{measured_how(quality, entries)} against cost; line: Pareto front, which no other "
        f"model beats in both; numbers: {removed_words(entry.variant for entry in entries)}"
    )
    rest = f"; grey: {len(every) - len(names)} more recipes" if len(every) > len(names) else ""
    return Drawing(f"costs_{quality.name}_{model}", caption + rest, figure, model, tuple(every))


def _panel(
    axis: Axes,
    quality: Quality,
    entries: Sequence[Entry],
    column: Column,
    looks: dict[str, Look],
    every: Sequence[str],
) -> list[tuple[float, float, str]]:
    """Draw a panel; return all points, with the labels of those on the front."""
    scale = unit_of(column.unit).factor
    known = [
        (entry, cost.mean * scale, value.mean)
        for entry in entries
        if (cost := entry.value(column.quantity)) and (value := quality.of(entry))
    ]
    for entry, x, y in known:
        if entry.is_dense:
            axis.plot([x], [y], color=INK, marker="X", markersize=7, linestyle="", zorder=4)
            continue
        look = looks.get(entry.name, Look(GREY, ".", ""))
        axis.plot(
            [x], [y], color=look.color, marker=look.marker, linestyle="", markeredgecolor="white", markersize=6,
            gid=f"recipe-{every.index(entry.name)}-{entry.variant.num_removed}",
        )  # fmt: skip
    front = pareto([(x, y) for _, x, y in known], lower_is_better=quality.lower_is_better)
    axis.plot(
        [known[at][1] for at in front], [known[at][2] for at in front], color=GREY, linewidth=1,
        drawstyle="steps-post", zorder=1,
    )  # fmt: skip
    axis.set_xlabel(column.title)
    axis.margins(0.12)
    if quality.lower_is_better:
        log_scale(axis, "y")
    return [
        (x, y, str(entry.variant.num_removed) if at in front and not entry.is_dense else "")
        for at, (entry, x, y) in enumerate(known)
    ]


def _place(figure: Figure, axes: Sequence[Axes], labels: Sequence[Sequence[tuple[float, float, str]]]) -> None:
    figure.draw_without_rendering()  # sets the places of the axes
    for axis, points in zip(axes, labels, strict=True):
        label_points(axis, points)
