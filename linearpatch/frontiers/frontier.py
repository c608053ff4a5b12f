"""The frontier of some recipes: sizes, losses, recommendations, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linearpatch.errors import require_range
from linearpatch.frontiers.losses import Measure, Point, chosen_metric, last_stage, points_of
from linearpatch.frontiers.recommendation import Recommendation, knee, within
from linearpatch.frontiers.running import Runs, run_frontier
from linearpatch.report.csv_files import csv_table
from linearpatch.report.figures.frontier import frontier_figure
from linearpatch.report.tables import Cell, Line, Table
from linearpatch.results.display import value_text
from linearpatch.results.record import Record
from linearpatch.storage.files import write_atomically
from linearpatch.text import removal_list

BOUND = 0.1  # the loss up to which layers are recommended, unless another is given


@dataclass(frozen=True, eq=False)
class Curve:
    """A recipe at every size.

    Attributes:
        name: Of the recipe.
        points: Its sizes, ascending.
        knee: Past which a layer costs more than on average; None of fewer than three sizes.
        within: The most layers within the bound.
    """

    name: str
    points: Sequence[Point]
    knee: Recommendation | None
    within: Recommendation


@dataclass(frozen=True, eq=False)
class Frontier:
    """How far a model can be pruned, by one or several recipes.

    Attributes:
        folder: With a folder for each run, and `frontier.json`, `frontier.csv` and the figure.
        measure: What is lost.
        bound: The loss up to which layers are recommended.
        curves: One for each recipe.
        failed: Runs that failed, with the reasons.
        seconds: What it took.
    """

    folder: Path
    measure: Measure
    bound: float
    curves: Sequence[Curve]
    failed: Mapping[str, str]
    seconds: float

    @property
    def records(self) -> list[Record]:
        """Those of all runs: ordinary records, equal to those of the runs alone."""
        return [point.record for curve in self.curves for point in curve.points]

    @classmethod
    def of(cls, runs: Runs, *, metric: str | None = None, bound: float = BOUND) -> Frontier:
        """What runs say.

        Raises:
            ConfigError: the metric wasn't measured, or none was.
        """
        records = [record for sizes in runs.done.values() for record, _ in sizes.values()]
        measure = Measure.of(chosen_metric(records, metric))
        curves = []
        for name, sizes in runs.done.items():
            points = points_of(sizes, measure)
            curves.append(Curve(name, points, knee(points, measure), within(points, bound)))
        return cls(runs.folder, measure, bound, curves, runs.failed, runs.seconds)

    def table(self) -> Table:
        """One line for each size of each recipe."""
        several = len(self.curves) > 1
        lines = []
        for curve in self.curves:
            for point in curve.points:
                record = point.record
                stage = last_stage(record)
                model, pruning, _ = record.require_edit()
                cells = (
                    Cell(removal_list(pruning.removed or pruning.removed_layers)),
                    Cell(f"{record.num_parameters(stage) / 1e6:,.1f} M", record.num_parameters(stage) / 1e6),
                    Cell(f"{record.num_parameters(stage) / model.num_parameters - 1:+.1%}"),
                    Cell(value_text(record.metrics[stage][self.measure.name])),
                    Cell(self._loss_text(point.loss, point.interval), point.loss),
                )
                labels = (curve.name, str(point.n)) if several else (str(point.n),)
                lines.append(Line(labels, cells, (curve.name,)))
        heads = ("recipe", "layers") if several else ("layers",)
        columns = ("removed", "parameters", "against dense", self.measure.name, self.measure.title)
        title = f"Frontier: {self.measure.title} ({self.measure.name})"
        return Table("frontier", title, heads, columns, tuple(lines), tuple(self.sentences()))

    def sentences(self) -> list[str]:
        """The recommendations in words."""
        sentences = []
        for curve in self.curves:
            of = f"{curve.name}: " if len(self.curves) > 1 else ""
            sentences.append(of + self._within_text(curve.within, curve))
            if curve.knee is not None:
                sentences.append(
                    f"{of}at the knee of the curve: {curve.knee.n} layers, {self._taken(curve.knee)}"
                    f"{_sizes_text(curve.knee)}"
                )
        if any(point.interval for curve in self.curves for point in curve.points):
            sentences.append("in brackets: 95 % intervals over windows or questions, paired with the dense model's")
        return sentences

    def _within_text(self, best: Recommendation, curve: Curve) -> str:
        limit = self.measure.text(self.bound)
        if best.n == 0:
            return f"within {limit}: none of the measured sizes{_sizes_text(best)}"
        more = "" if best.n < curve.points[-1].n else "; larger sizes weren't measured"
        sure = f"; {best.certain} if the whole interval counts" if best.certain not in (None, best.n) else ""
        return f"within {limit}: {best.n} layers, {self._taken(best)}{_sizes_text(best)}{sure}{more}"

    def _taken(self, best: Recommendation) -> str:
        return f"{self._loss_text(best.loss, best.interval)} {self.measure.title}"

    def _loss_text(self, loss: float, interval: tuple[float, float] | None) -> str:
        if interval is None:
            return self.measure.text(loss)
        low, high = (self.measure.text(value) for value in interval)
        return f"{self.measure.text(loss)} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"

    def to_plain(self) -> dict[str, Any]:
        """All of it as values of JSON."""
        return {
            "metric": self.measure.name,
            "loss": self.measure.title,
            "bound": self.bound,
            "seconds": round(self.seconds, 1),
            "recipes": [
                {
                    "name": curve.name,
                    "sizes": [
                        {"n": point.n, "run_id": point.record.run_id, "loss": point.loss, "interval": point.interval}
                        for point in curve.points
                    ],
                    "knee": asdict(curve.knee) if curve.knee else None,
                    "within": asdict(curve.within),
                }
                for curve in self.curves
            ],
            "failed": dict(self.failed),
        }

    def write(self) -> list[Path]:
        """Write `frontier.json`, `frontier.csv` and the figure beside the runs."""
        drawing = frontier_figure(self.curves, self.measure, self.bound)
        contents = {
            "frontier.json": json.dumps(self.to_plain(), indent=2).encode(),
            "frontier.csv": csv_table(self.table()).encode(),
            "frontier.png": drawing.png,
            "frontier.svg": drawing.svg.encode(),
        }
        for name, content in contents.items():
            write_atomically(self.folder / name, content)
        return [self.folder / name for name in contents]


def frontier(
    *overrides: str, sizes: Sequence[int] | None = None, bound: float = BOUND, metric: str | None = None
) -> Frontier:
    """How far a model can be pruned: every size of one or several recipes, from one pass and one model in memory.

        result = lp.frontier("experiment=recommended", sizes=range(1, 10))
        result.curves[0].within.n, result.curves[0].knee.n

    Runs that are complete aren't run again, so that an interrupted frontier resumes. Each is an ordinary run in a
    folder of its own, with the record that it would have alone.

    Args:
        overrides: Such as `experiment=recommended`; with several values, as `patch=none,lstsq`, every combination is a
            recipe.
        sizes: Numbers of layers to remove; None: every one up to a third of the layers.
        bound: The loss up to which layers are recommended: 0.1 is 10 % more perplexity or less accuracy.
        metric: Of what; None: the first perplexity, divergence or accuracy that was measured.

    Raises:
        ConfigError: a recipe is impossible, or what it measures gives no frontier.
    """
    require_range("bound", bound, low=0)
    result = Frontier.of(run_frontier(list(overrides), sizes), metric=metric, bound=bound)
    result.write()
    return result


def _sizes_text(recommendation: Recommendation) -> str:
    if recommendation.sizes is None or recommendation.sizes[0] == recommendation.sizes[1]:
        return ""
    return f" ({recommendation.sizes[0]} to {recommendation.sizes[1]})"
