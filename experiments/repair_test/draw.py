"""Recipes side by side, on text that they were calibrated for and on other text: the figure of docs/repair.md.

python experiments/repair_test/draw.py experiments/repair_test/report
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from linearpatch.report.figures.style import FAINT, Drawing, house_style, legend, log_scale, look, panels

PANELS = {"ppl/wikitext2_v1": "WikiText-2, as calibrated on", "ppl/pydoc": "Python's documentation"}
RECIPES = {  # pruner, patch and the corpus that they were calibrated on
    ("streamline", "rotate", "wikitext2_v1"): "streamline + rotate (the paper)",
    ("streamline", "lstsq", "wikitext2_v1"): "streamline + least squares",
    ("shortgpt", "lstsq", "wikitext2_v1"): "ShortGPT + least squares",
    ("patch_aware", "refit", "wikitext2_v1"): "recommended",
    ("patch_aware", "refit", "mixture"): "recommended, calibrated on both",
}
MOST = 500  # perplexity that is drawn; a model beyond it is broken, however far

Curves = dict[tuple[str, str], dict[int, list[float]]]  # by metric and recipe: perplexities by size


def main(report: Path) -> None:
    """Draw what the report's table of measurements holds."""
    with (report / "tables" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    drawing = Drawing("recipes", "Perplexity of recipes by layers removed.", draw(rows))
    (report / "figures" / "recipes.png").write_bytes(drawing.png)


def draw(rows: list[dict[str, str]]) -> Figure:
    """A panel for each text; means over seeds."""
    curves = curves_of(rows)
    dense = {row["metric"]: float(row["value"]) for row in rows if row["stage"] == "dense"}
    with house_style():
        figure, axes = panels(len(PANELS), size=(3.5, 2.9))
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            axis.axhline(dense[metric], color=FAINT, linestyle=":", linewidth=1)
            axis.annotate("dense", (13, dense[metric]), (0, -9), textcoords="offset points", ha="right", color=FAINT)
            for index, recipe in enumerate(RECIPES.values()):
                curve = curves[metric, recipe]
                axis.plot(sorted(curve), [mean(curve[size]) for size in sorted(curve)], **asdict(look(index)))
            axis.set(title=title, xlabel="layers removed, of 30", ylim=(dense[metric] * 0.7, MOST))
            axis.set_xticks(sorted(curve))
            log_scale(axis, "y")
        axes[0].set_ylabel("perplexity")
        legend(figure, [look(index).line() for index in range(len(RECIPES))], list(RECIPES.values()))
    return figure


def curves_of(rows: list[dict[str, str]]) -> Curves:
    """Perplexities of the recipes that are drawn, by metric and recipe, then by size."""
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        corpus = "mixture" if "mixture" in row["settings"] else "wikitext2_v1"
        recipe = RECIPES.get((row["pruner"], row["patch"], corpus))
        if recipe and row["stage"] == "patched" and row["metric"] in PANELS:
            curves[row["metric"], recipe][int(row["num_pruned_layers"])].append(float(row["value"]))
    return curves


if __name__ == "__main__":
    main(Path(sys.argv[1]))
