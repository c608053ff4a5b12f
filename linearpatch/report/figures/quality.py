"""Quality against layers removed, and against speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from linearpatch.report.figures.style import (
    FAINT,
    INK,
    Drawing,
    legend,
    look,
    panels,
    panels_in_row,
    plain_powers,
    short,
)
from linearpatch.report.layouts import perplexity_columns
from linearpatch.report.quantities import Entry, Quantity, all_metrics, metric, retained
from linearpatch.report.rows import PATCHES

MOST_LABELS = 40
SPEEDS = {"speed/prefill_tokens_per_s": "prefill tokens/s", "speed/decode_tokens_per_s": "decode tokens/s"}


def against_layers(entries: Sequence[Entry]) -> list[Drawing]:
    """Perplexity of each corpus, and what is retained of each average, against layers removed: one panel a pruner."""
    drawings = []
    for model, own in by_model(entries).items():
        known = all_metrics([row for entry in own for row in entry.rows])
        for name in (name for name in known if name.startswith("ppl/")):
            title = f"perplexity of {name[4:]}"
            for alike in measured_alike(own, metric(name)):
                drawings.append(_lines(own, alike, metric(name), f"perplexity_{name[4:]}_{model}", title, log=True))
        kept = {name for entry in own for row in entry.rows for values in row.retained.values() for name in values}
        for name in (name for name, measure in known.items() if measure.headline and name in kept):
            quantity, title = _percent(retained(name)), f"retained performance of {name} (mean of ratios), %"
            for alike in measured_alike(own, quantity):
                drawings.append(_lines(own, alike, quantity, f"retained_{name}_{model}", title))
    return drawings


def against_speed(entries: Sequence[Entry]) -> list[Drawing]:
    """Perplexity of the first corpus against speed."""
    drawings = []
    for model, own in by_model(entries).items():
        known = all_metrics([row for entry in own for row in entry.rows])
        corpora = [column.key for column in perplexity_columns(known)][:1]
        points = {
            (corpus, speed): found
            for corpus in corpora
            for speed in SPEEDS
            for alike in measured_alike(own, metric(corpus))[:1]
            if len(found := max(measured_alike(alike, metric(speed)), key=len, default=[])) > 1
        }
        if not points:
            continue
        patches = names_of_patches(own)
        used = {patch_name(entry) for found in points.values() for entry in found}
        figure, axes = panels(len(points), size=(3.6, 2.9))
        for axis, ((corpus, speed), found) in zip(axes, points.items(), strict=True):
            for entry in found:
                _point(axis, entry, corpus, speed, patches, labelled=len(found) <= MOST_LABELS)
            axis.set_yscale("log")
            plain_powers(axis.yaxis)
            axis.set_xlabel(SPEEDS[speed])
            axis.set_ylabel(f"perplexity of {corpus[4:]}")
            axis.margins(0.12)
        samples = [look(at).line(linestyle="") for at, patch in enumerate(patches) if patch in used]
        labels = [patch for patch in patches if patch in used]
        legend(figure, [*samples, look(6).line(linestyle="", markersize=6)], [*labels, "dense"])
        caption = f"{model}: perplexity against speed; numbers are layers removed, lower right is better"
        drawings.append(Drawing(f"speed_{model}", caption, figure))
    return drawings


def by_model(entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
    """Entries of each model."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.variant.model, []).append(entry)
    return found


def measured_alike(entries: Sequence[Entry], quantity: Quantity) -> list[list[Entry]]:
    """Entries with a quantity, apart where it was measured in another way; the most first, none with dense alone."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        value = entry.value(quantity)
        if value:
            found.setdefault((value.reading.protocol, value.reading.data), []).append(entry)
    groups = [group for group in found.values() if any(entry.variant.stage != "dense" for entry in group)]
    return sorted(groups, key=len, reverse=True)


def with_same_settings(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries apart by the settings that tell them apart; all together where each number of layers has but one."""
    if len({entry.variant.num_removed for entry in entries}) == len(entries):
        return [list(entries)]
    found: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.variant.settings, []).append(entry)
    return list(found.values())


def patch_name(entry: Entry) -> str:
    """The patch, with its distillation."""
    variant = entry.variant
    return variant.patch + (f" + {variant.distill}" if variant.distill not in ("", "none") else "")


def names_of_patches(entries: Sequence[Entry]) -> list[str]:
    """All patches among some entries, the plainest first, so that each keeps its look."""
    names = {patch_name(entry) for entry in entries if entry.variant.stage != "dense"}
    return sorted(names, key=lambda name: (PATCHES.index(name) if name in PATCHES else len(PATCHES), name))


def label(axis: Axes, text: str, place: tuple[float, float], shift: tuple[float, float], **more: Any) -> None:
    """A small text beside a point."""
    axis.annotate(text, place, xytext=shift, textcoords="offset points", fontsize=6.5, color=FAINT, **more)


def _lines(
    model: Sequence[Entry], entries: Sequence[Entry], quantity: Quantity, name: str, title: str, *, log: bool = False
) -> Drawing:
    """One panel for each pruner, one line for each patch.

    Args:
        model: All entries of the model, whose patches keep their looks.
        entries: Those to draw; all were measured in the same way.
        quantity: What to draw.
        name: Of the drawing.
        title: Of the vertical axis.
        log: Whether that is logarithmic.
    """
    shown = [entry for entry in entries if entry.variant.stage != "dense"]
    pruners = sorted({entry.variant.pruner for entry in shown})
    patches = names_of_patches(model)
    used = {patch_name(entry) for entry in shown}
    dense = next((value for e in entries if e.variant.stage == "dense" and (value := e.value(quantity))), None)
    figure, axes = panels(len(pruners), sharey=True)
    for axis, pruner in zip(axes, pruners, strict=True):
        for at, patch in enumerate(patches):
            own = [entry for entry in shown if entry.variant.pruner == pruner and patch_name(entry) == patch]
            for same in with_same_settings(own):
                _series(axis, same, quantity, look(at), shift=(at - (len(patches) - 1) / 2) * 0.06)
        if dense:
            axis.axhline(dense.mean, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
            label(axis, "dense", (0, dense.mean), (2, 2), xycoords=("axes fraction", "data"))
        axis.set_title(short(pruner))
        axis.set_xlabel("layers removed")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
        axis.margins(x=0.12)
        if log:
            axis.set_yscale("log")
    if len({entry.variant.num_removed for entry in shown}) == 1:  # a single place on the axis
        only = shown[0].variant.num_removed
        for axis in axes:
            axis.set_xlim(only - 1, only + 1)
    for axis in axes if log else ():
        plain_powers(axis.yaxis)
    for axis in axes[:: panels_in_row(len(axes))]:
        axis.set_ylabel(title.replace(" of ", "\nof ", 1))
    legend(
        figure,
        [look(at).line() for at, patch in enumerate(patches) if patch in used],
        [patch for patch in patches if patch in used],
    )
    value = entries[0].value(quantity)
    protocol = f" ({value.reading.protocol}, {value.reading.data})" if value else ""
    bars = "bars: standard deviation over seeds, or the 95 % interval of a single seed"
    return Drawing(name, f"{entries[0].variant.model}: {title}{protocol} against layers removed; {bars}", figure)


def _series(axis: Axes, entries: Sequence[Entry], quantity: Quantity, style: Any, *, shift: float) -> None:
    """Points with bars, one for each number of layers, joined."""
    values = [(entry.variant.num_removed, value) for entry in entries if (value := entry.value(quantity))]
    bars = [(x + shift, *value.interval, value.mean) for x, value in values if value.interval]
    lows = [max(low, mean * 0.01) for _, low, _, mean in bars]  # a logarithmic axis has no place below zero
    axis.vlines([x for x, *_ in bars], lows, [high for _, _, high, _ in bars], style.color, linewidth=0.8, alpha=0.7)
    points = sorted((x + shift, value.mean) for x, value in values)
    axis.plot(
        [x for x, _ in points], [y for _, y in points], color=style.color, marker=style.marker,
        linestyle=style.linestyle, markeredgecolor="white", markeredgewidth=0.5, zorder=3,
    )  # fmt: skip


def _point(axis: Axes, entry: Entry, corpus: str, speed: str, patches: Sequence[str], *, labelled: bool) -> None:
    x, y = entry.value(metric(speed)), entry.value(metric(corpus))
    if x is None or y is None:
        return
    if entry.variant.stage == "dense":
        axis.plot([x.mean], [y.mean], color=INK, marker="X", markersize=6, linestyle="")
        return
    style = look(patches.index(patch_name(entry)))
    axis.plot([x.mean], [y.mean], color=style.color, marker=style.marker, linestyle="", markeredgecolor="white")
    if labelled:
        label(axis, str(entry.variant.num_removed), (x.mean, y.mean), (4, 3))


def _percent(quantity: Quantity) -> Quantity:
    """A quantity times 100."""

    def read(row: Any) -> Any:
        found = quantity(row)
        if found is None:
            return None
        low, high = (None if end is None else 100 * end for end in (found.low, found.high))
        return type(found)(100 * found.value, found.protocol, found.data, low, high)

    return read
