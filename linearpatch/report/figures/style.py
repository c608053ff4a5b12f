"""The look of all figures, in one place."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from linearpatch.text import printable

# Okabe and Ito's colours, ordered so that neighbours differ in lightness, too; markers and dashes tell them apart in
# print without colour. Brown in place of their yellow, which fades on white; none is grey, which is for the rest.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a4b12")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (8, 2)))
INK, FAINT, GREY, GRID = "#222222", "#8a8a8a", "#c9ced6", "#e4e4e4"
PANEL = (3.1, 2.5)  # inches
DPI = 200

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.hspace": 0.06,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # names are names, whatever they hold
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the report; the same figure gives the same bytes.

    Attributes:
        name: Of its files.
        caption: What it shows.
        figure: The figure.
        model: Of whose recipes it has a part each …
        recipes: … and their names; parts of the first are called `recipe-0-…`.
    """

    name: str
    caption: str
    figure: Figure = field(compare=False)
    model: str = ""
    recipes: tuple[str, ...] = ()

    @cached_property
    def png(self) -> bytes:
        """The picture; drawing it puts everything in its place for the other formats, too."""
        for text in self.figure.findobj(Text):
            if (plain := printable(text.get_text())) != text.get_text():
                text.set_text(plain)
        with house_style():
            content = io.BytesIO()
            self.figure.set_dpi(DPI)
            # A canvas draws once; `savefig` would draw twice, the first time only to see the layout.
            FigureCanvasAgg(self.figure).print_png(content, metadata={"Software": None})
            self.figure.set_layout_engine("none")
            return content.getvalue()

    @cached_property
    def pdf(self) -> bytes:
        """For papers."""
        assert self.png
        with house_style():
            content = io.BytesIO()
            metadata = {"CreationDate": None, "Producer": None, "Creator": None}
            FigureCanvasPdf(self.figure).print_pdf(content, metadata=metadata)
            return content.getvalue()

    @cached_property
    def svg(self) -> str:
        """For a page: texts are outlines, so that it looks the same everywhere."""
        assert self.png
        with house_style(), matplotlib.rc_context({"svg.hashsalt": self.name}):
            content = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.set_dpi(72)
            FigureCanvasSVG(self.figure).print_svg(content, metadata=nothing)
            return content.getvalue()


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    color: str
    marker: str
    linestyle: Any

    def line(self, **more: Any) -> Line2D:
        """A sample for the legend."""
        shown = {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, **more}
        return Line2D([], [], **shown)


def look(index: int) -> Look:
    """The look of the series at an index, the same in every figure; the first 64 differ in colour or marker."""
    turn = index // len(COLOURS)
    marker = MARKERS[(index + turn) % len(MARKERS)]
    return Look(COLOURS[index % len(COLOURS)], marker, DASHES[(index + turn) % len(DASHES)])


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house's look; nothing outside the block changes."""
    settings: Any = {**dict(matplotlib.rcParamsDefault), **STYLE, "backend": "agg"}
    with matplotlib.rc_context(settings):
        yield


def panels_in_row(count: int) -> int:
    """How many panels of so many stand in a row; four make a square."""
    return 2 if count == 4 else min(count, 3)


def panels(count: int, *, sharey: bool = False, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels in rows."""
    across = panels_in_row(count)
    down = -(-count // across)
    figure = Figure(figsize=(size[0] * across + 0.3, size[1] * down + 0.45))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=sharey)
    axes = [axis for row in grid for axis in row]
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def short(text: str, most: int = 30) -> str:
    """A name that leaves room for the figure.

    >>> short("a" * 40, 5)
    'aaaa…'
    """
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def legend(figure: Figure, samples: Sequence[Line2D], labels: Sequence[str], *, beside: bool = False) -> None:
    """One legend for all panels, below or beside them; the figure grows by its size."""
    texts = [short(label, 90) for label in labels]
    texts = [text.replace(" (", "\n(", 1) if len(text) > 40 else text for text in texts]
    width, height = figure.get_size_inches()
    longest = max((len(part) for text in texts for part in text.split("\n")), default=1)
    each = 0.5 + 0.068 * longest
    if beside:
        rows = sum(text.count("\n") + 1 for text in texts)
        figure.set_size_inches(width + each, max(height, 0.16 * rows + 0.3))
        figure.legend(list(samples), texts, loc="outside right upper", ncols=1)
        return
    fitting = max(1, min(len(texts), int(width / each)))
    columns = -(-len(texts) // -(-len(texts) // fitting))  # rows of equal length
    figure.set_size_inches(width, height + 0.17 * max(0, -(-len(texts) // columns) - 1))
    figure.legend(list(samples), texts, loc="outside lower center", ncols=columns)


def log_scale(axes: Axes, which: str) -> None:
    """A logarithmic axis with numbers as people write them, at least two of them, however little it spans."""
    if which == "y":
        axes.set_yscale("log")
    else:
        axes.set_xscale("log")
    axis: Axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    close, wide = high / low < 12, high / low > 1000
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if close else (1.0,) if wide else (1.0, 3.0)
    locator: Locator = LogLocator(subs=steps, numticks=9)
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 3:
        locator = MaxNLocator(nbins=6, min_n_ticks=3)
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]], size: float = 6.5) -> None:
    """Write small texts beside points where they cover neither points nor each other; those without room are left out.

    Args:
        axes: Where they are; their place in the figure is known by now.
        points: All that are drawn; those with a text get it.
        size: Of the letters.
    """
    scale = axes.figure.dpi / 72
    places = [axes.transData.transform((x, y)) / scale for x, y, _ in points]
    taken = [Bbox.from_bounds(x - 3.5, y - 3.5, 7, 7) for x, y in places]
    bounds = axes.get_window_extent()
    inside = Bbox(bounds.get_points() / scale)
    for (x, y, text), place in zip(points, places, strict=True):
        width, height = 0.62 * size * len(text), 1.1 * size
        for dx, dy in (
            ((4, 3), (4, -3 - height), (-4 - width, 3), (-4 - width, -3 - height), (-width / 2, 6)) if text else ()
        ):
            box = Bbox.from_bounds(place[0] + dx, place[1] + dy, width, height)
            fits = inside.contains(*box.min) and inside.contains(*box.max)
            if fits and not any(box.overlaps(other) for other in taken):
                axes.annotate(
                    text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=size, color=INK, va="bottom"
                )
                taken.append(box)
                break
