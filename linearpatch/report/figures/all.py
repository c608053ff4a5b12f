"""Every figure of the report."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from linearpatch.report.figures.costs import against_costs
from linearpatch.report.figures.layers import layer_maps, layer_scores
from linearpatch.report.figures.patches import fits, profiles, training_curves
from linearpatch.report.figures.quality import against_layers
from linearpatch.report.figures.style import Drawing, house_style
from linearpatch.report.quantities import Entry
from linearpatch.report.reading import Run

log = logging.getLogger(__name__)

MOST_CHARACTERS = 120  # of a file's name; systems take 255 bytes


def draw(entries: Sequence[Entry], runs: Sequence[Run], facet: str | None = None) -> list[Drawing]:
    """Draw what there is something to show of.

    Args:
        entries: All of the report.
        runs: Those they are of.
        facet: What figures of quality against layers have a panel for, see `against_layers`.
    """
    pruned = [run for run in runs if run.record.pruning and run.record.patch]
    drawings: list[Drawing] = []
    with house_style():
        drawings += [*against_layers(entries, facet), *against_costs(entries), *layer_maps(entries)]
        for of_runs in (layer_scores, fits, profiles, training_curves):
            try:
                drawings += of_runs(pruned)
            except (KeyError, TypeError, ValueError) as error:  # a plugin may record its scores in another form
                log.warning("the report goes without figures of %s: %s", of_runs.__name__.replace("_", " "), error)
    return list(_with_file_names(drawings))


def _with_file_names(drawings: Sequence[Drawing]) -> Iterator[Drawing]:
    """Names that any system takes, none twice."""
    seen: set[str] = set()
    for drawing in drawings:
        name = base = re.sub(r"[^A-Za-z0-9._-]+", "_", drawing.name).strip("._")[:MOST_CHARACTERS] or "figure"
        number = 2
        while name.lower() in seen:
            name, number = f"{base}_{number}", number + 1
        seen.add(name.lower())
        yield replace(drawing, name=name)
