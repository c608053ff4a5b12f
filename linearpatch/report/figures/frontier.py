"""What each size loses: one line for each recipe, its intervals, its knee and the bound of quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from linearpatch.report.figures.quality import integer_axis
from linearpatch.report.figures.style import FAINT, INK, Drawing, house_style, legend, look, panels, short

if TYPE_CHECKING:
    from linearpatch.frontiers.frontier import Curve
    from linearpatch.frontiers.losses import Measure

RING = 11  # points across the mark of a knee


def frontier_figure(curves: Sequence[Curve], measure: Measure, bound: float) -> Drawing:
    """Losses against layers removed.

    Args:
        curves: One for each recipe.
        measure: What is lost.
        bound: Drawn as a line.
    """
    factor = 100 if measure.is_share else 1
    with house_style():
        figure, (axis,) = panels(1, size=(5.2, 3.4))
        samples, labels = [], []
        for index, curve in enumerate(curves):
            style = look(index)
            sizes = [0, *(point.n for point in curve.points)]
            losses = [0.0, *(factor * point.loss for point in curve.points)]
            spans = [(point.n, *point.interval) for point in curve.points if point.interval]
            axis.fill_between(
                [0, *(n for n, _, _ in spans)],
                [0.0, *(factor * low for _, low, _ in spans)],
                [0.0, *(factor * high for _, _, high in spans)],
                color=style.color, alpha=0.16, linewidth=0,
            )  # fmt: skip
            axis.plot(
                sizes, losses, color=style.color, marker=style.marker, linestyle=style.linestyle,
                markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
            samples.append(style.line())
            labels.append(curve.name)
            if curve.knee is not None:
                axis.plot(
                    [curve.knee.n], [factor * curve.knee.loss], "o", color=style.color, markersize=RING,
                    markerfacecolor="none", markeredgewidth=1.2,
                )  # fmt: skip
        if any(curve.knee for curve in curves):
            samples.append(Line2D([], [], color=INK, marker="o", linestyle="", markersize=8, markerfacecolor="none"))
            labels.append("knee")
        axis.axhline(factor * bound, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        samples.append(Line2D([], [], color=FAINT, linewidth=1, linestyle=(0, (4, 2))))
        labels.append(f"bound, {measure.text(bound)}")
        integer_axis(axis, [0, *(point.n for curve in curves for point in curve.points)])
        axis.set_xlabel("layers removed")
        unit = ", %" if measure.is_share else ", nats"
        axis.set_ylabel(short(f"{measure.title}{unit}", 60))
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        legend(figure, samples, labels)
    bands = (
        "; bands: 95 % intervals over windows or questions"
        if any(point.interval for curve in curves for point in curve.points)
        else ""
    )
    caption = f"{measure.title} ({measure.name}) against layers removed{bands}"
    return Drawing("frontier", caption, figure)
