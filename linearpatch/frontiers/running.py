"""Runs of every size of some recipes, in this process: one model in memory, one pass for all statistics."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from linearpatch.budgets.budget import sizes_of
from linearpatch.calibration.workspace import Workspace
from linearpatch.config import check_choices, compose_config, resolved, to_experiment
from linearpatch.config_errors import readable_errors
from linearpatch.errors import ConfigError, LinearPatchError
from linearpatch.experiment import Experiment, digest
from linearpatch.models.decoder import text_config
from linearpatch.models.units import LAYER
from linearpatch.overrides import override
from linearpatch.pipeline import cache_of, recipe_key, run
from linearpatch.preparation import Shared
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import identity, title_of
from linearpatch.results.record import Record
from linearpatch.runtime.progress import steps
from linearpatch.selection import statistics_of
from linearpatch.storage.files import check_folder
from linearpatch.sweep.manifest import listed
from linearpatch.sweep.plan import Job, Plan, PlannedRun, plan_sweep, statistics_key
from linearpatch.sweep.request import command_of
from linearpatch.text import counted

log = logging.getLogger(__name__)

SHARE_OF_LAYERS = 3  # sizes go up to a third of the layers, unless they are given


@dataclass(frozen=True)
class Recipe:
    """What is compared at every size.

    Attributes:
        name: What tells it from the others.
        overrides: Its configuration, without the number of layers.
        number: The setting that holds it.
    """

    name: str
    overrides: tuple[str, ...]
    number: str = "num_pruned_layers"


@dataclass
class Runs:
    """The runs of a frontier.

    Attributes:
        folder: Where their folders are.
        done: By recipe and number of removed layers: the record, and its folder.
        failed: What couldn't be done, and why, by the run's name.
        seconds: What it took.
    """

    folder: Path
    done: dict[str, dict[int, tuple[Record, Path]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def recipes_of(overrides: Sequence[str]) -> list[Recipe]:
    """Every combination of the values of overrides that have several, such as `patch=none,lstsq`.

    Raises:
        ConfigError: an override can't be parsed, or says how many layers go.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(word.startswith(("num_pruned_layers=", "num_pruned=", "budget=")) for word in overrides):
        raise ConfigError(
            "A frontier sets the number of layers itself: leave num_pruned_layers, num_pruned and budget out. Set the "
            "sizes with --sizes 1-9 or --sizes 3,5,7."
        )
    with readable_errors():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        combinations = BasicSweeper.split_arguments(parsed, None)[0] if parsed else [[]]
    varied = {word.partition("=")[0] for words in combinations for word in set(words) - set(combinations[0])}
    return [
        Recipe(" ".join(word for word in words if word.partition("=")[0] in varied), tuple(words))
        for words in combinations
    ]


def run_frontier(
    overrides: Sequence[str], sizes: Sequence[int] | None = None, *, search_path: Sequence[str] = (), typed: str = ""
) -> Runs:
    """Run every size of every recipe; what is complete already isn't run again.

    Args:
        overrides: Of the configuration; of keys with several values every combination is a recipe.
        sizes: Numbers of layers to remove; None: every one up to a third of the layers.
        search_path: Folders of the user's own configuration.
        typed: The command that does all of it again.

    Raises:
        ConfigError: a recipe is impossible, or can't remove so many layers.
    """
    recipes = recipes_of(overrides)
    started = time.time()
    asked: list[PlannedRun] = []
    owners: list[tuple[str, int]] = []
    label = f"frontier-{digest([sorted(recipe.overrides) for recipe in recipes])}"
    for recipe in recipes:
        recipe = replace(recipe, number=_number(recipe, search_path))
        first = _experiment(recipe, 1, label, search_path)
        for n in sizes_for(first, sizes):
            experiment = _experiment(recipe, n, label, search_path)
            experiment.check_model(first.model.config(first.cache_path))
            name = recipe.name or _title(experiment)
            owners.append((name, n))
            asked.append(PlannedRun(_words(recipe, n, label), experiment))
    since = started if any(request.experiment and request.experiment.force for request in asked) else None
    whole = plan_sweep(asked, label, search_path=search_path, since=since)
    plan = replace(whole, jobs=tuple(replace(job, needs=frozenset()) for job in whole.jobs if job.is_run))
    check_folder(plan.folder)
    runs = Runs(plan.folder, {name: {} for name, _ in owners})
    pending = sum(job.is_pending for job in plan.runs)
    log.info("frontier %s: %s, %d to do", label, counted(len(plan.runs), "run"), pending)
    with listed(plan, typed), steps("sizes", len(plan.runs)) as on_step:
        for job, record, error in _walk(plan):
            name, n = owners[plan.jobs.index(job)]
            if record is None:
                runs.failed[job.name] = error
            else:
                runs.done[name][n] = (record, job.request.path)
            on_step()
    runs.done = {name: sizes for name, sizes in runs.done.items() if sizes}
    runs.seconds = time.time() - started
    return runs


def sizes_for(experiment: Experiment, asked: Sequence[int] | None) -> list[int]:
    """The sizes of a recipe: those asked for, or up to a third of the layers."""
    if asked is not None:
        return sorted(set(asked))
    num_layers = text_config(experiment.model.config(experiment.cache_path)).num_hidden_layers
    possible = sizes_of(experiment.pruner, num_layers)
    return [n for n in possible if n <= max(1, num_layers // SHARE_OF_LAYERS)]


def _walk(plan: Plan) -> Iterator[tuple[Job, Record | None, str]]:
    """Run what is pending, and yield each run as it ends: its record, or why there is none.

    Runs that read the same model and tokens share them, recipe by recipe.
    """
    for job in plan.runs:
        if job.done is not None:
            yield job, job.done, ""
    pending = [(job, job.experiment) for job in plan.runs if job.is_pending and job.experiment]
    for _, members in groupby(pending, key=lambda member: _shared_key(member[1])):
        together = list(members)
        experiments = [experiment for _, experiment in together]

        ready = partial(_ready, experiments)
        shared = Shared(ready, cache_of(experiments[0], together[0][0].request.since))
        for job, experiment in together:
            try:
                yield job, _run(job, experiment, shared), ""
            except LinearPatchError as error:
                log.error("%s: %s", job.name, error)
                yield job, None, str(error)


def _ready(experiments: Sequence[Experiment], key: str, workspace: Workspace) -> None:
    """One pass for the statistics of all runs; and what the sizes of a recipe share beside them."""
    fitted = [experiment.for_model(workspace.decoder) for experiment in experiments]
    workspace.collect(*(asked for one in fitted for asked in statistics_of(one.pruner, one.patch, one.num_units)))
    sizes = {experiment.num_units: experiment for experiment in fitted if recipe_key(experiment) == key}
    for experiment in list(sizes.values())[:1]:
        experiment.pruner.chooser.prepare(workspace, [n for n in sizes if n is not None])


def _run(job: Job, experiment: Experiment, shared: Shared) -> Record:
    request = job.request
    config = compose_config(request.overrides[0], request.search_path)
    config.group = config.group or request.group
    return run(
        experiment,
        request.path,
        config=resolved(config),
        command=command_of(request),
        since=request.since,
        run_id=request.name,
        shared=shared,
    )


def _shared_key(experiment: Experiment) -> str:
    """What runs must have in common to share model, tokens and measurements."""
    training = [identity(experiment.distill), experiment.distillation] if experiment.training else []
    asks = [identity(experiment.pruner)] if type(experiment.pruner).questions is not Pruner.questions else []
    return digest([statistics_key(experiment), experiment.measured, training, asks])


def _experiment(recipe: Recipe, n: int, label: str, search_path: Sequence[str]) -> Experiment:
    words = _words(recipe, n, label)
    check_choices(words)
    return to_experiment(compose_config(words, search_path))


def _number(recipe: Recipe, search_path: Sequence[str]) -> str:
    """The setting that counts what a recipe's pruner removes: layers, or sublayers."""
    unit = compose_config(recipe.overrides, search_path).pruner.unit
    return "num_pruned_layers" if unit == LAYER else "num_pruned"


def _words(recipe: Recipe, n: int, label: str) -> tuple[str, ...]:
    given = {word.partition("=")[0] for word in recipe.overrides}
    more = [] if "output_dir" in given else [override("output_dir", f"outputs/{label}")]
    more += [] if "group" in given else [f"group={label}"]
    return (*recipe.overrides, f"{recipe.number}={n}", *more)


def _title(experiment: Experiment) -> str:
    return ", ".join(title_of(group, experiment.choices[group]) for group in ("pruner", "patch"))
