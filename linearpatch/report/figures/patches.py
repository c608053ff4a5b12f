"""How well patches bridge the interfaces, and the curves of their training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from linearpatch.registry import title_of
from linearpatch.report.figures.layers import removed_text
from linearpatch.report.figures.style import FAINT, GREY, INK, Drawing, legend, log_scale, look, panels, short
from linearpatch.report.reading import Run
from linearpatch.results.fields import plain
from linearpatch.results.questions import ARRAYS
from linearpatch.text import layer_list

log = logging.getLogger(__name__)

PROFILES = {
    "magnitude_ratio": "magnitude, × dense",
    "cosine_to_dense": "cosine with dense",
    "error_to_dense": "squared error / dense",
}
SHOWN = {
    "error": ("error_before", "error_after"),
    "scale": ("scale_mean", "scale_std", "scale_min", "scale_max"),
}
MOST_PANELS, MOST_SITES = 9, 40


def largest(runs: Sequence[Run]) -> list[Run]:
    """Of each model, pruner, patch and distillation the run that removed most layers."""
    chosen: dict[tuple[str, ...], Run] = {}
    for run in runs:
        distill = run.record.distillation.method if run.record.distillation else "none"
        key = (run.model.name, run.pruning.method, run.patch.method, distill)
        other = chosen.setdefault(key, run)
        if other.record.size < run.record.size:
            chosen[key] = run
    return [chosen[key] for key in sorted(chosen)]


def fits(runs: Sequence[Run]) -> list[Drawing]:
    """What each fit says of itself at each site: the error before and after, or the scale and its spread."""
    drawings = []
    for model in dict.fromkeys(run.model.name for run in runs):
        own = [run for run in largest(runs) if run.model.name == model]
        named = [(_site_name(run, site), site) for run in own for site in _sites(run)]
        shown = {kind: [fit for fit in named if set(keys) <= fit[1].keys()] for kind, keys in SHOWN.items()}
        shown = {kind: sites[:MOST_SITES] for kind, sites in shown.items() if sites}
        if not shown:
            continue
        figure, axes = panels(len(shown), size=(4.4, 0.26 * max(map(len, shown.values())) + 0.9))
        for axis, (kind, sites) in zip(axes, shown.items(), strict=True):
            rows = range(len(sites))
            values = {key: [site[key] for _, site in sites] for key in SHOWN[kind]}
            if kind == "error":
                axis.hlines(rows, values["error_before"], values["error_after"], color=FAINT, linewidth=1)
                axis.plot(values["error_before"], rows, "o", markerfacecolor="white", color=look(1).color)
                axis.plot(values["error_after"], rows, "s", color=look(0).color)
            else:
                means, spreads = numpy.array(values["scale_mean"]), numpy.array(values["scale_std"])
                axis.hlines(rows, values["scale_min"], values["scale_max"], color=GREY, linewidth=1)
                axis.hlines(rows, means - spreads, means + spreads, color=look(0).color, linewidth=3, alpha=0.5)
                axis.plot(means, rows, "o", color=look(0).color)
            axis.set_yticks(range(len(sites)), [name for name, _ in sites])
            axis.set_ylim(len(sites) - 0.4, -0.6)
            axis.grid(visible=False, axis="y")
            axis.set_ylabel("recipe: removed layers")
            axis.axvline(1, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            if kind == "error":
                axis.set_title("error: ○ without, ■ with patch")
                axis.set_xlabel("squared error, relative")
                if min(value for ends in values.values() for value in ends) > 0:
                    log_scale(axis, "x")
            else:
                axis.set_title("scale: mean, ± sd, range")
                axis.set_xlabel("factor of a channel")
        caption = (
            f"{model}: how each patch fits its sites, on the calibration tokens, at the largest number of layers; "
            "dashed at 1: an error as large as what is expected there, and a scale that changes nothing"
        )
        drawings.append(Drawing(f"fits_{model}", caption, figure))
    return drawings


def profiles(runs: Sequence[Run]) -> list[Drawing]:
    """How far each stage is from dense along the layers, where the evaluation `diagnostics` recorded it."""
    drawings = []
    for run in largest([run for run in runs if any(name.endswith("/streams") for name in _arrays(run))]):
        arrays = _arrays(run)
        stages = [s for s in ("pruned", "patched", "distilled") if f"{s}/streams" in arrays]
        shown = [name for name in PROFILES if all(f"{stage}/{name}" in arrays for stage in stages)]
        if not stages or not shown:
            continue
        figure, axes = panels(len(shown))
        for axis, name in zip(axes, shown, strict=True):
            for at, stage in enumerate(stages):
                own = look(at)
                streams, values = arrays[f"{stage}/streams"], arrays[f"{stage}/{name}"]
                line: dict[str, Any] = {"marker": own.marker, "markersize": 2.8, "linewidth": 1.1}
                axis.plot(streams, values, color=own.color, linestyle=own.linestyle, **line)
            for start, end in run.pruning.interfaces:
                axis.axvspan(start, end, color="#eef1f5", zorder=0, linewidth=0)
            axis.set_title(PROFILES[name])
            axis.set_xlabel("input of layer")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        legend(figure, [look(at).line() for at in range(len(stages))], stages)
        caption = f"{_run_name(run)}: streams against dense's, layer by layer; shaded: removed"
        drawings.append(Drawing(f"streams_{run.record.run_id}", caption, figure))
    return drawings[:MOST_PANELS]


def training_curves(runs: Sequence[Run]) -> list[Drawing]:
    """Losses of each distillation, one panel for each, with the step that was kept."""
    drawings = []
    trained = [run for run in largest(runs) if run.record.distillation and run.record.distillation.curve]
    for model in dict.fromkeys(run.model.name for run in trained):
        own = [run for run in trained if run.model.name == model][:MOST_PANELS]
        figure, axes = panels(len(own), size=(3.3, 2.4))
        for axis, run in zip(axes, own, strict=True):
            distillation = run.record.distillation
            assert distillation is not None
            for at, kind in enumerate(("loss", "validation_loss")):
                points = [(point.step, getattr(point, kind)) for point in distillation.curve]
                steps = [step for step, loss in points if loss is not None]
                losses = [loss for _, loss in points if loss is not None]
                style: dict[str, Any] = {"marker": "o", "markersize": 3.5} if at else {"linewidth": 0.9, "alpha": 0.6}
                axis.plot(steps, losses, color=look(1 - at).color, **style)
                if kind == "validation_loss" and distillation.best_step in steps:
                    best = steps.index(distillation.best_step)
                    axis.plot([steps[best]], [losses[best]], marker="*", color=look(0).color, markersize=10)
            pruned = f"{run.pruning.method} {run.record.size}"
            axis.set_title(f"{pruned}, {run.patch.method} + {distillation.method}", fontsize=8)
            axis.set_xlabel("step")
            axis.set_ylabel("loss")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        samples = [look(1).line(linestyle="-", marker="", alpha=0.6), look(0).line(marker="o")]
        legend(figure, samples, ["training", "validation (★: kept)"])
        drawings.append(Drawing(f"distillation_{model}", f"{model}: losses of the distillation", figure))
    return drawings


def _sites(run: Run) -> list[dict[str, float]]:
    """What fits say of each site, of those that say nothing else than numbers."""
    sites: list[dict[str, float]] = [plain(site) for site in run.patch.sites]
    return [site for site in sites if all(value is not None for value in site.values())]


def _site_name(run: Run, site: Mapping[str, float]) -> str:
    start, end = site["start"], site["end"]
    is_of_layers = start == int(start) and end == int(end)
    layers = layer_list(range(int(start), int(end))) if is_of_layers else f"{start:g} to {end:g}"
    recipe = f"{title_of('pruner', run.pruning.method)} + {title_of('patch', run.patch.method)}"
    return f"{short(recipe, 40)}: {layers}"


def _run_name(run: Run) -> str:
    recipe = f"{title_of('pruner', run.pruning.method)} + {title_of('patch', run.patch.method)}"
    return f"{run.model.name}, {recipe}, {removed_text(run.pruning)}"


def _arrays(run: Run) -> dict[str, NDArray[numpy.float32]]:
    """Arrays beside the record; none where the file can't be read, or where they don't fit each other."""
    file = run.folder / ARRAYS
    if not file.is_file():
        return {}
    try:
        arrays = dict(load_file(file))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        log.warning("%s can't be read: %s", file, error)
        return {}
    for name, array in arrays.items():
        streams = arrays.get(f"{name.partition('/')[0]}/streams", array)
        if name.rpartition("/")[2] in PROFILES and (array.ndim != 1 or array.shape != streams.shape):
            log.warning("the streams of %s aren't drawn: %s of %s has %s", run.record.run_id, name, file, array.shape)
            return {}
    return arrays
