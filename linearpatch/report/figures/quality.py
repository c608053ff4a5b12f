"""Quality against layers removed: one axis, one line for each recipe; of a single size, a dot for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from linearpatch.report.figures.series import (
    MOST_RECIPES,
    Quality,
    by_model,
    looks_of,
    measured_alike,
    measured_how,
    qualities,
)
from linearpatch.report.figures.style import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    Drawing,
    Look,
    legend,
    log_scale,
    panels,
    short,
)
from linearpatch.report.names import removed_words
from linearpatch.report.quantities import Entry

MOST_DOTS = 60
BARS = "bars: 95 % interval over the data, or the standard deviation over seeds"


def against_layers(entries: Sequence[Entry], facet: str | None = None) -> list[Drawing]:
    """Each perplexity, and what is retained of each average, of each model.

    Args:
        entries: All of the report.
        facet: Draw a panel for each value of this, one of `FACETS`; None draws all into one.
    """
    drawings = []
    for model, own in by_model(entries).items():
        looks = looks_of(own)
        for quality in qualities(own):
            for alike in measured_alike(own, quality.quantity):
                single = len({entry.variant.num_removed for entry in alike if not entry.is_dense}) == 1
                if single and facet is None:
                    drawings.append(_dots(model, quality, alike))
                else:
                    drawings.append(_lines(model, quality, alike, looks, facet))
    return drawings


def highlighted(quality: Quality, entries: Sequence[Entry]) -> list[str]:
    """The recipes with looks of their own: the best of each size, then the second best of each, and so on.

    They are in the order of their quality at the largest size, then at the next smaller one.
    """
    pruned = [entry for entry in entries if not entry.is_dense]
    sizes = sorted({entry.variant.num_removed for entry in pruned}, reverse=True)
    ranked = [
        [entry.name for entry in quality.best_first([one for one in pruned if one.variant.num_removed == size])]
        for size in sizes
    ]
    by_rank = [name for places in zip_longest(*ranked) for name in places if name is not None]
    chosen = list(dict.fromkeys(by_rank))[:MOST_RECIPES]
    return [name for name in dict.fromkeys(chain.from_iterable(ranked)) if name in chosen]


def _lines(
    model: str, quality: Quality, entries: Sequence[Entry], looks: dict[str, Look], facet: str | None
) -> Drawing:
    pruned = [entry for entry in entries if not entry.is_dense]
    facets = list(dict.fromkeys(_facet_of(entry, facet) for entry in pruned))
    names = highlighted(quality, pruned)
    every = list(dict.fromkeys(entry.name for entry in pruned))
    what = removed_words(entry.variant for entry in pruned)
    figure, axes = panels(len(facets), sharey=True, size=(6.2, 3.9) if len(facets) == 1 else (3.1, 2.5))
    dense = next((value for entry in entries if entry.is_dense and (value := quality.of(entry))), None)
    for axis, called in zip(axes, facets, strict=True):
        own = [entry for entry in pruned if _facet_of(entry, facet) == called]
        recipes = list(dict.fromkeys(entry.name for entry in own))
        step = min(0.07, 0.5 / max(1, len([name for name in recipes if name in names])))
        for name in sorted(recipes, key=lambda name: name in names):  # grey ones below
            line = [entry for entry in own if entry.name == name]
            part = f"recipe-{every.index(name)}-"
            if name in names:
                shift = (names.index(name) - (len(names) - 1) / 2) * step
                _series(axis, quality, line, looks[name], shift, part)
            else:
                _series(axis, quality, line, Look(GREY, "", "-"), 0.0, part)
        if dense:
            axis.axhline(dense.mean, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axis.set_title(short(called))
        axis.set_xlabel(what)
        integer_axis(axis, [entry.variant.num_removed for entry in pruned])
        if quality.lower_is_better:
            log_scale(axis, "y")
    axes[0].set_ylabel(short(quality.title, 60))
    samples = [looks[name].line() for name in names]
    if dense:
        samples.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (2, 2))))
    legend(figure, samples, [*names, *(["dense"] if dense else [])], beside=len(facets) == 1)
    more = len(every) - len(names)
    rest = f"; grey: {more} more recipes, behind these at every size" if more else ""
    caption = f"{model}: {quality.title}{measured_how(quality, entries)} against {what}; {BARS}{rest}"
    return Drawing(f"{quality.name}_{model}", caption, figure, model, tuple(every))


def _facet_of(entry: Entry, facet: str | None) -> str:
    if facet is None:
        return ""
    return entry.variant.settings_text if facet == "settings" else str(getattr(entry.variant, facet))


def integer_axis(axis: Axes, values: Sequence[int]) -> None:
    """Whole numbers alone along the horizontal axis, and room on both sides."""
    low, high = min(values), max(values)
    room = max(0.4, 0.06 * (high - low))
    axis.set_xlim(low - room, high + room)
    sizes = sorted(set(values))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    if len(sizes) <= 10:
        axis.set_xticks(sizes)


def _series(axis: Axes, quality: Quality, entries: Sequence[Entry], look: Look, shift: float, part: str) -> None:
    """Points with bars, one for each number of layers, joined."""
    values = sorted(
        ((entry.variant.num_removed + shift, value) for entry in entries if (value := quality.of(entry))),
        key=lambda pair: pair[0],
    )
    grey = look.color == GREY
    bars = [] if grey else [(x, *value.interval, value.mean) for x, value in values if value.interval]
    lows = [max(low, mean * 0.01) if quality.lower_is_better else low for _, low, _, mean in bars]  # log has no zero
    highs = [high for _, _, high, _ in bars]
    axis.vlines([x for x, *_ in bars], lows, highs, look.color, linewidth=0.9, alpha=0.7, gid=f"{part}bars")
    axis.plot(
        [x for x, _ in values], [value.mean for _, value in values], color=look.color, marker=look.marker or ".",
        linestyle=look.linestyle, markeredgecolor=GREY if grey else "white", markeredgewidth=0.5,
        linewidth=0.7 if grey else 1.4, markersize=2 if grey else 5, zorder=2 if grey else 3,
        gid=f"{part}line",
    )  # fmt: skip


def _dots(model: str, quality: Quality, entries: Sequence[Entry]) -> Drawing:
    """Recipes of one size, the best on top."""
    ordered = quality.best_first([entry for entry in entries if not entry.is_dense])
    shown = ordered[:MOST_DOTS]
    figure, (axis,) = panels(1, size=(6.0, 0.24 * len(shown) + 0.6))
    for at, entry in enumerate(shown):
        value = quality.of(entry)
        if value is None:
            continue
        if value.interval:
            low = max(value.interval[0], value.mean * 0.01) if quality.lower_is_better else value.interval[0]
            axis.hlines(at, low, value.interval[1], FAINT, linewidth=1.4, gid=f"recipe-{at}-bar")
        axis.plot([value.mean], [at], "o", color=COLOURS[0], markersize=5, gid=f"recipe-{at}-dot")
    dense = next((value for entry in entries if entry.is_dense and (value := quality.of(entry))), None)
    if dense:
        axis.axvline(dense.mean, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="dense", zorder=1)
    axis.set_yticks(range(len(shown)), [short(entry.name, 60) for entry in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(short(quality.title, 80))
    if quality.lower_is_better:
        log_scale(axis, "x")
    if dense:
        legend(figure, [Line2D([], [], color=INK, linewidth=1, linestyle=(0, (2, 2)))], ["dense"])
    variant = shown[0].variant
    rest = f"; the best {len(shown)} of {len(ordered)} recipes" if len(ordered) > len(shown) else ""
    what = f"{quality.title}{measured_how(quality, entries)}"
    what_goes = removed_words(entry.variant for entry in shown)
    size = f"{variant.num_removed} of {variant.num_layers} {what_goes}"
    if what_goes != "layers removed":
        size = f"{variant.num_removed} {what_goes} from {variant.num_layers} layers"
    caption = f"{model}, {size}: {what}, the best first; {BARS}{rest}"
    return Drawing(f"{quality.name}_{model}", caption, figure, model, tuple(entry.name for entry in shown))
