"""Which layers go, and why."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linearpatch.registry import title_of
from linearpatch.report.figures.series import by_model
from linearpatch.report.figures.style import COLOURS, FAINT, GREY, GRID, Drawing, log_scale, panels, short
from linearpatch.report.layouts import layer_sets
from linearpatch.report.quantities import Entry
from linearpatch.report.reading import Run
from linearpatch.results.scores import LayerScores
from linearpatch.text import counted

log = logging.getLogger(__name__)

MOST_LINES = 60  # of a map: more than a page holds
WIDEST = 40.0  # inches


def layer_maps(entries: Sequence[Entry]) -> list[Drawing]:
    """For each model a row for each distinct set of removed layers, labelled with all recipes that remove it."""
    drawings = []
    for model, own in by_model(entries).items():
        rows = layer_sets(own)
        if rows:
            drawings.append(_map(model, own[0].variant.num_layers, rows[:MOST_LINES], len(rows)))
    return drawings


def _map(model: str, num_layers: int, rows: Sequence[tuple[tuple[int, ...], str]], total: int) -> Drawing:
    figure = Figure(figsize=(min(max(5.0, 0.17 * num_layers + 3.2), WIDEST), 0.24 * len(rows) + 0.9))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    removed = numpy.array([[float(layer in layers) for layer in range(num_layers)] for layers, _ in rows])
    colours = LinearSegmentedColormap.from_list("removed", ["#f3f3f3", COLOURS[0]])
    edges = [numpy.arange(count + 1) - 0.5 for count in (num_layers, len(rows))]
    axis.pcolormesh(*edges, removed, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.2)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [f"{short(name, 60)}   {len(layers)}" for layers, name in rows])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axis.set_xlabel("layer")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    rest = f" (the first {len(rows)} of {total})" if total > len(rows) else ""
    caption = f"{model}: layers removed, a row for each distinct set{rest}; behind the recipes their number"
    return Drawing(f"layers_{model}", caption, figure)


def layer_scores(runs: Sequence[Run]) -> list[Drawing]:
    """What each pruner scored, where most layers go: values of layers or windows, or the losses of a search."""
    drawings = []
    models: dict[str, dict[str, tuple[Run, LayerScores]]] = {}
    for run in runs:
        pruning, chosen = run.pruning, models.setdefault(run.model.name, {})
        scores = pruning.scores
        if not isinstance(scores, LayerScores):  # a plug-in may record its scores in another form
            if scores:
                log.warning("the scores of %s (%s) aren't drawn: no LayerScores", run.record.run_id, run.folder)
            continue
        if any(scores.by_step):
            other, _ = chosen.setdefault(pruning.method, (run, scores))
            if len(other.pruning.removed_layers) < len(pruning.removed_layers):
                chosen[pruning.method] = (run, scores)
    for model, chosen in models.items():
        if chosen:
            figure, axes = panels(len(chosen), size=(3.3, 2.4))
            for axis, (pruner, (run, scores)) in zip(axes, sorted(chosen.items()), strict=True):
                _scores(figure, axis, pruner, run.pruning.removed_layers, scores)
            searches = [bool(scores.steps) for _, scores in chosen.values()]
            marks = "" if all(searches) else "; dark bars: removed"
            marks += "; ×: what a step of the search removes, grey: no candidate" if any(searches) else ""
            if any(scores.finalists for _, scores in chosen.values()):
                marks += (
                    "; ringed: finalists, the best by this score, which were fitted on all calibration tokens and "
                    "ranked again by their held-out loss, so that the best score need not be the one removed"
                )
            caption = f"{model}: scores of each pruner at the largest number of layers{marks}"
            drawings.append(Drawing(f"scores_{model}", caption, figure))
    return drawings


def _scores(figure: Figure, axis: Axes, pruner: str, removed: Sequence[int], scores: LayerScores) -> None:
    again = "\n(finalists ranked again)" if scores.finalists else ""
    axis.set_title(f"{short(title_of('pruner', pruner))}, {counted(len(removed), 'layer')}{again}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if scores.steps:
        _search(figure, axis, scores)
        return
    values = [float("nan") if value is None else value for value in scores.values or ()]
    window = scores.unit == "window"
    chosen = {min(removed, default=0)} if window else set(removed)
    colours = [COLOURS[0] if at in chosen else GREY for at in range(len(values))]
    axis.bar(range(len(values)), values, color=colours, width=0.8)
    finalists = (
        [min(finalist["removed"]) for finalist in scores.finalists or () if finalist.get("removed")] if window else []
    )
    ringed = [at for at in finalists if 0 <= at < len(values)]
    axis.plot(ringed, [values[at] for at in ringed], "o", markerfacecolor="none", markeredgecolor=COLOURS[1])
    known = [value for value in values if value == value]
    if known and min(known) > 0 and max(known) / min(known) > 50:
        log_scale(axis, "y")
    axis.set_xlabel("first layer of the window" if window else "layer")
    axis.set_ylabel(short(scores.criterion, 40))
    axis.grid(visible=False, axis="x")


def _search(figure: Figure, axis: Axes, scores: LayerScores) -> None:
    """Steps of a search from top to bottom: the loss without each layer that is left, and which was removed."""
    steps = scores.steps or []
    grid = numpy.full((len(steps), max(int(layer) for losses in scores.by_step for layer in losses) + 1), numpy.nan)
    for at, step in enumerate(steps):
        for layer, loss in step.losses.items():
            grid[at, int(layer)] = numpy.nan if loss is None else loss
    # One layer that breaks the model would leave all others alike.
    high = None if numpy.isnan(grid).all() else numpy.nanquantile(grid, 0.9)
    image = axis.imshow(grid, aspect="auto", cmap="cividis", vmax=high, interpolation="nearest")
    for at, step in enumerate(steps):
        removed = numpy.atleast_1d(step.removed)
        axis.plot(removed, [at] * len(removed), "x", color="white", markersize=5, markeredgewidth=1.5)
    axis.set_yticks(range(len(steps)), [str(at + 1) for at in range(len(steps))])
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlabel("layer")
    axis.set_ylabel("step")
    axis.grid(visible=False)
    axis.set_facecolor(GRID)
    bar = figure.colorbar(image, ax=axis, pad=0.02, extend="max")
    bar.set_label(short(scores.criterion if scores.criterion != "score" else "loss", 40), size=7, color=FAINT)
    bar.outline.set_visible(False)
