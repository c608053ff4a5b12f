"""Which layers go, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linearpatch.report.figures.quality import by_model
from linearpatch.report.figures.style import COLOURS, FAINT, GRID, Drawing, panels, plain_powers, short
from linearpatch.report.quantities import Entry
from linearpatch.report.reading import Run
from linearpatch.results.scores import LayerScores
from linearpatch.text import counted

log = logging.getLogger(__name__)

MOST_LINES = 60  # of a map: more than a page holds
WIDEST = 40.0  # inches


def layer_maps(entries: Sequence[Entry]) -> list[Drawing]:
    """For each model a line for each pruner and number of layers; dark layers are removed, pale ones in some runs."""
    drawings = []
    for model, own in by_model(entries).items():
        lines: dict[tuple[str, int], set[tuple[int, ...]]] = {}
        for entry in own:
            if entry.variant.stage != "dense":
                removed = {tuple(sorted(row.removed)) for row in entry.rows}
                lines.setdefault((entry.variant.pruner, entry.variant.num_removed), set()).update(removed)
        if lines:
            shown = dict(sorted(lines.items())[:MOST_LINES])
            drawings.append(_map(model, own[0].variant.num_layers, shown, len(lines)))
    return drawings


def _map(model: str, num_layers: int, lines: Mapping[tuple[str, int], set[tuple[int, ...]]], total: int) -> Drawing:
    figure = Figure(figsize=(min(max(4.0, 0.17 * num_layers + 1.6), WIDEST), 0.24 * len(lines) + 0.9))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    shares = numpy.array(
        [[sum(layer in s for s in sets) / len(sets) for layer in range(num_layers)] for sets in lines.values()]
    )
    colours = LinearSegmentedColormap.from_list("removed", ["#f3f3f3", COLOURS[0]])
    edges = [numpy.arange(count + 1) - 0.5 for count in (num_layers, len(lines))]
    axis.pcolormesh(*edges, shares, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.2)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.set_yticks(range(len(lines)), [f"{short(pruner)}  {n}" for pruner, n in lines])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axis.set_xlabel("layer")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    rest = f" (the first {len(lines)} of {total})" if total > len(lines) else ""
    caption = f"{model}: layers that each pruner removes, by number of layers{rest}; pale: in some runs only"
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
            caption = f"{model}: scores of each pruner at the largest number of layers{marks}"
            drawings.append(Drawing(f"scores_{model}", caption, figure))
    return drawings


def _scores(figure: Figure, axis: Axes, pruner: str, removed: Sequence[int], scores: LayerScores) -> None:
    axis.set_title(f"{short(pruner)}, {counted(len(removed), 'layer')}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if scores.steps:
        _search(figure, axis, scores)
        return
    values = [float("nan") if value is None else value for value in scores.values or ()]
    window = scores.unit == "window"
    chosen = {min(removed, default=0)} if window else set(removed)
    colours = [COLOURS[0] if at in chosen else "#c9ced6" for at in range(len(values))]
    axis.bar(range(len(values)), values, color=colours, width=0.8)
    known = [value for value in values if value == value]
    if known and min(known) > 0 and max(known) / min(known) > 50:
        axis.set_yscale("log")
        plain_powers(axis.yaxis)
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
