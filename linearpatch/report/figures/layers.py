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
from linearpatch.report.names import UNITS
from linearpatch.report.quantities import Entry
from linearpatch.report.reading import Run
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import PruningSection
from linearpatch.text import counted

log = logging.getLogger(__name__)

PAIRS = "sublayer: attention and MLP of each layer in turn"
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


def removed_text(pruning: PruningSection) -> str:
    """How much was removed, in words."""
    sublayers = counted(len(pruning.removed), "sublayer")
    return sublayers if pruning.removed else counted(len(pruning.removed_layers), "layer")


def _map(model: str, num_layers: int, rows: Sequence[tuple[tuple[int | str, ...], str]], total: int) -> Drawing:
    figure = Figure(figsize=(min(max(5.0, 0.17 * num_layers + 3.2), WIDEST), 0.24 * len(rows) + 0.9))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    removed = numpy.array([_shares(units, num_layers) for units, _ in rows])
    colours = LinearSegmentedColormap.from_list("removed", ["#f3f3f3", COLOURS[0]])
    edges = [numpy.arange(count + 1) - 0.5 for count in (num_layers, len(rows))]
    axis.pcolormesh(*edges, removed, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.2)
    for at, (units, _) in enumerate(rows):
        for layer, _, part in (str(unit).partition(".") for unit in units):
            if part and removed[at, int(layer)] < 1:
                axis.text(int(layer), at, part[0].upper(), ha="center", va="center", fontsize=5, color="black")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [f"{short(name, 60)}   {len(layers)}" for layers, name in rows])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axis.set_xlabel("layer")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    rest = f" (the first {len(rows)} of {total})" if total > len(rows) else ""
    caption = f"{model}: layers removed, a row for each distinct set{rest}; with their number after the recipes"
    if any(isinstance(unit, str) for units, _ in rows for unit in units):
        caption += "; A, M: only the attention, only the MLP"
    return Drawing(f"layers_{model}", caption, figure)


def _shares(units: Sequence[int | str], num_layers: int) -> list[float]:
    """Of each layer, how much is removed: 1, a half for a sublayer, or nothing."""
    shares = [0.0] * num_layers
    for layer, _, part in (str(unit).partition(".") for unit in units):
        shares[int(layer)] += 0.5 if part else 1.0
    return shares


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
            name = f"{pruning.method} {run.record.unit}" if pruning.removed else pruning.method
            other, _ = chosen.setdefault(name, (run, scores))
            if other.record.size < run.record.size:
                chosen[name] = (run, scores)
    for model, chosen in models.items():
        if chosen:
            figure, axes = panels(len(chosen), size=(3.3, 2.4))
            for axis, (pruner, (run, scores)) in zip(axes, sorted(chosen.items()), strict=True):
                _scores(figure, axis, pruner, run.pruning, scores)
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


def _scores(figure: Figure, axis: Axes, pruner: str, pruning: PruningSection, scores: LayerScores) -> None:
    again = "\n(finalists ranked again)" if scores.finalists else ""
    method, _, unit = pruner.partition(" ")
    title = f"{title_of('pruner', method)} {UNITS.get(unit, unit)}".strip()
    axis.set_title(f"{short(title)}, {removed_text(pruning)}{again}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if scores.steps:
        _search(figure, axis, scores)
        return
    values = [float("nan") if value is None else value for value in scores.values or ()]
    window = scores.unit == "window"
    removed = {str(unit) for unit in pruning.removed or pruning.removed_layers}
    chosen = {str(min(pruning.removed_layers, default=0))} if window else removed
    colours = [COLOURS[0] if scores.name(at) in chosen else GREY for at in range(len(values))]
    axis.bar(range(len(values)), values, color=colours, width=0.8)
    finalists = (
        [min(finalist["removed"]) for finalist in scores.finalists or () if finalist.get("removed")] if window else []
    )
    ringed = [at for at in finalists if 0 <= at < len(values)]
    axis.plot(ringed, [values[at] for at in ringed], "o", markerfacecolor="none", markeredgecolor=COLOURS[1])
    known = [value for value in values if value == value]
    if known and min(known) > 0 and max(known) / min(known) > 50:
        log_scale(axis, "y")
    axis.set_xlabel({"window": "first layer of the window", "sublayer": PAIRS}.get(scores.unit, "layer"))
    axis.set_ylabel(short(scores.criterion, 40))
    axis.grid(visible=False, axis="x")


def _search(figure: Figure, axis: Axes, scores: LayerScores) -> None:
    """Steps of a search from top to bottom: the loss without each layer that is left, and which was removed."""
    steps = scores.steps or []
    of_both = scores.unit == "sublayer"
    width = max(_column(name, of_both) for losses in scores.by_step for name in losses) + 1
    grid = numpy.full((len(steps), width), numpy.nan)
    for at, step in enumerate(steps):
        for name, loss in step.losses.items():
            grid[at, _column(name, of_both)] = numpy.nan if loss is None else loss
    # One layer that breaks the model would leave all others alike.
    high = None if numpy.isnan(grid).all() else numpy.nanquantile(grid, 0.9)
    image = axis.imshow(grid, aspect="auto", cmap="cividis", vmax=high, interpolation="nearest")
    for at, step in enumerate(steps):
        units = step.removed if isinstance(step.removed, list) else [step.removed]
        removed = [_column(unit, of_both) for unit in units]
        axis.plot(removed, [at] * len(removed), "x", color="white", markersize=5, markeredgewidth=1.5)
    axis.set_yticks(range(len(steps)), [str(at + 1) for at in range(len(steps))])
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlabel(PAIRS if of_both else "layer")
    axis.set_ylabel("step")
    axis.grid(visible=False)
    axis.set_facecolor(GRID)
    bar = figure.colorbar(image, ax=axis, pad=0.02, extend="max")
    bar.set_label(short(scores.criterion if scores.criterion != "score" else "loss", 40), size=7, color=FAINT)
    bar.outline.set_visible(False)


def _column(unit: int | str, of_both: bool) -> int:
    """Where a layer or sublayer stands; with `of_both` each layer has two columns."""
    layer, _, part = str(unit).partition(".")
    return 2 * int(layer) + (part == "mlp") if of_both else int(layer)
