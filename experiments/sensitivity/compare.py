"""Which measure tells recipes apart, and with how much text or how many questions.

    python experiments/sensitivity/compare.py outputs/sensitivity     # or several folders

Recipes of one size are ranked by a measure, and each is compared with the next, paired over windows of text or over
questions: the effect is the mean difference, z that over its standard error. From z = 1.96 on a pair is distinguished.
As z² grows with their number, (2.8 / z)² times as many windows or questions would tell the median pair apart with a
probability of 80 %. Correlations are Spearman's, over all recipes and sizes, with the measures of `REFERENCES`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, nan
from pathlib import Path
from statistics import median

import numpy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from scipy import stats

from linearpatch.results.files import read_record
from linearpatch.results.questions import Answers

WINDOWS = "/windows"
DETECTED, POWER = 1.96, 2.8  # z of a difference at 5 %; the mean z with which 80 % of samples reach it
HIGHER_IS_BETTER = ("acc", "acc_norm", "agreement", "valid", "first_difference")
REFERENCES = ("ppl/", "divergence")  # measures of text, with which all are correlated
OTHERS = ("choice", "length", "length_ratio")  # neither more nor less of them is better

Values = NDArray[numpy.float64]
Samples = Mapping[str, Values]  # by measure: a value for each window or question, lower is better


@dataclass(frozen=True)
class Recipe:
    """A recipe at one size.

    Attributes:
        name: Pruner and patch.
        size: Layers removed.
        samples: What it was measured by.
    """

    name: str
    size: int
    samples: Samples


@dataclass(frozen=True)
class Sensitivity:
    """How well a measure tells neighbours apart.

    Attributes:
        counted: `windows` or `questions`.
        number: How many.
        effects: z of each pair of neighbours.
        best: By size, the recipe that wins; none where several share the first place.
    """

    counted: str
    number: int
    effects: tuple[float, ...]
    best: Mapping[int, str]

    @property
    def distinguished(self) -> int:
        """Pairs whose difference is beyond chance."""
        return sum(effect >= DETECTED for effect in self.effects)

    @property
    def needed(self) -> float:
        """Windows or questions for the median pair."""
        middle = median(self.effects)
        return ceil(self.number * (POWER / middle) ** 2) if middle else inf


def main(*folders: Path) -> None:
    """Print both tables of the runs in some folders."""
    if not folders:
        sys.exit("Name the folder of a sweep, such as outputs/sensitivity.")
    if missing := [folder for folder in folders if not folder.is_dir()]:
        sys.exit(f"{missing[0]} is no folder. Name that of a sweep, such as outputs/sensitivity.")
    paths = [path.parent for folder in folders for path in sorted(folder.glob("*/result.json"))]
    recipes = [recipe for path in paths if (recipe := recipe_of(path))]
    if not recipes:
        places = ", ".join(map(str, folders))
        sys.exit(
            f"No completed run of a sweep in {places} (*/result.json). Make some: "
            "linearpatch run -m experiment=sensitivity"
        )
    console = Console(width=170)
    sizes = sorted({recipe.size for recipe in recipes})
    measures = measures_of(recipes)
    table = Table(
        Column("measure", no_wrap=True), "number", "distinguished", "median effect / error", "needed",
        *(f"best, {size}" for size in sizes), caption="neighbouring recipes of one size; needed: for the median pair",
    )  # fmt: skip
    for name in measures:
        result = sensitivity(recipes, name)
        if result is not None:
            needed = "–" if result.needed == inf else f"{result.needed:,.0f}"
            pairs = f"{result.distinguished} of {len(result.effects)}"
            row = [f"{result.number} {result.counted}", pairs, f"{median(result.effects):.1f}", needed]
            table.add_row(name, *row, *(result.best.get(size, "") for size in sizes))
    console.print(table)
    references = [name for name in measures if name.startswith(REFERENCES) and kind_of(name) != "agreement"]
    matrix = Table(Column("Spearman's ρ with", no_wrap=True), *references, caption="–: all recipes score the same")
    for name in measures:
        values = (correlation(recipes, name, reference) for reference in references)
        matrix.add_row(name, *("–" if value != value else f"{value:.2f}" for value in values))
    console.print(matrix)


def recipe_of(folder: Path) -> Recipe | None:
    """What a run measured of the model it made; None where it isn't complete."""
    record = read_record(folder)
    if record is None or record.status != "completed":
        return None
    _, pruning, patch = record.require_edit()
    answers = Answers(folder)
    stages = {name.partition("/")[0] for name in answers.arrays} | set(answers.questions)
    stage = "patched" if "patched" in stages else "pruned"
    samples = {name: numpy.asarray(values, dtype=float) for name, values in answers.questions.get(stage, {}).items()}
    samples |= {
        name.removeprefix(f"{stage}/").removesuffix(WINDOWS): values.double().flatten().numpy()
        for name, values in answers.arrays.items()
        if name.startswith(f"{stage}/") and name.endswith(WINDOWS)
    }
    turned = {
        name: -values if kind_of(name) in HIGHER_IS_BETTER else values
        for name, values in samples.items()
        if kind_of(name) not in OTHERS
    }
    return Recipe(f"{pruning.method} {patch.method}", len(pruning.removed_layers), turned)


def kind_of(name: str) -> str:
    """The last part of a measure's name."""
    return name.rpartition("/")[2]


def measures_of(recipes: list[Recipe]) -> list[str]:
    """Measures that all recipes have, those of text first."""
    shared = set.intersection(*(set(recipe.samples) for recipe in recipes))
    return sorted(shared, key=lambda name: (not name.startswith(REFERENCES), name))


def sensitivity(recipes: list[Recipe], name: str) -> Sensitivity | None:
    """How well a measure tells neighbours apart; None where no size has two recipes."""
    effects: list[float] = []
    best: dict[int, str] = {}
    number = 0
    for size in sorted({recipe.size for recipe in recipes}):
        ranked = sorted((recipe for recipe in recipes if recipe.size == size), key=lambda one: one.samples[name].mean())
        means = [recipe.samples[name].mean() for recipe in ranked]
        if means[:1] != means[1:2]:
            best[size] = ranked[0].name
        for better, worse in pairwise(ranked):
            values = worse.samples[name] - better.samples[name]
            number = len(values)
            effects.append(effect(values))
    counted = "windows" if name.startswith(("ppl/", "divergence")) else "questions"
    return Sensitivity(counted, number, tuple(effects), best) if effects else None


def effect(differences: Values) -> float:
    """The mean of paired differences over its standard error; nothing where none differs."""
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return float(abs(differences.mean()) / error) if error > 0 else 0.0


def correlation(recipes: list[Recipe], first: str, second: str) -> float:
    """Spearman's, of the means of two measures; not a number where one is the same for all."""
    means = [[recipe.samples[name].mean() for recipe in recipes] for name in (first, second)]
    if any(len(set(values)) == 1 for values in means):
        return nan
    return float(stats.spearmanr(*means).statistic)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
