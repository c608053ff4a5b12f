"""From the configurations of a sweep to jobs: what is done already, what several runs share, who waits for whom.

Nothing here loads a model. What runs share becomes a job of its own that comes first and fills the cache, so that no
run sits on a GPU while it waits for another's result:

    texts       what the dense model generates itself (`corpus=generated`)
    dense       the evaluations of a dense model
    statistics  one pass over calibration tokens for all that pruners and patches will ask
    pruned      a pruner's choice of layers, and the evaluations of the model without them

Runs that read the same distillation targets need no such job: the first of them makes the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError
from linearpatch.experiment import Experiment, digest
from linearpatch.pipeline import completed
from linearpatch.registry import identity, name_of
from linearpatch.results.record import Record
from linearpatch.results.state import state_of
from linearpatch.sweep.request import Request

SHARED = ".shared"  # folder of the shared steps' records, in the sweep's


@dataclass(frozen=True)
class PlannedRun:
    """One combination of a sweep.

    Attributes:
        overrides: Its configuration.
        experiment: What that describes; None where it is impossible …
        error: … and why.
    """

    overrides: tuple[str, ...]
    experiment: Experiment | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Job:
    """Work for a process of its own.

    Attributes:
        name: The run's id, or the shared step's name.
        request: What the process does.
        experiment: The run, or the first of those that a shared step serves; None for an impossible combination.
        needs: Names of the jobs that must have ended before.
        done: The record of what is complete already.
        error: Why it can't be done at all.
    """

    name: str
    request: Request
    experiment: Experiment | None = None
    needs: frozenset[str] = frozenset()
    done: Record | None = None
    error: Exception | None = None

    @property
    def is_run(self) -> bool:
        """Whether this is a run, not a step that runs share."""
        return self.request.part == "run"

    @property
    def is_pending(self) -> bool:
        """Whether there is something to do."""
        return self.done is None and self.error is None


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep.

    Attributes:
        label: The group of its runs.
        folder: Where their folders are.
        jobs: Shared steps, then runs in the order in which they were asked for.
    """

    label: str
    folder: Path
    jobs: tuple[Job, ...]

    @property
    def runs(self) -> list[Job]:
        """The runs."""
        return [job for job in self.jobs if job.is_run]

    @property
    def shared(self) -> list[Job]:
        """The steps that runs share."""
        return [job for job in self.jobs if not job.is_run]


def plan_sweep(
    asked: Sequence[PlannedRun],
    label: str,
    *,
    folder: Path = Path("outputs"),
    search_path: Sequence[str] = (),
    since: float | None = None,
) -> Plan:
    """Plan a sweep.

    Runs of the same model with other evaluations would write over each other's metrics: their names, and so their
    folders, say which they are.

    Args:
        asked: Its combinations.
        label: The group of its runs.
        folder: Where their folders are; combinations that are possible say it themselves.
        search_path: Folders of the user's own configuration.
        since: With `force`, cached results from before (seconds since 1970) are recomputed.

    Raises:
        ConfigError: runs have different folders.
    """
    asked_for: dict[Path, set[str]] = {}
    for job in asked:
        if job.experiment is not None:
            variants = asked_for.setdefault(job.experiment.folder(in_sweep=True), set())
            variants.add(digest(job.experiment.measured))
    runs: list[Job] = []
    for index, job in enumerate(asked):
        request = Request("run", f"combination {index + 1}", "", (job.overrides,), label, tuple(search_path), since)
        if job.experiment is None:
            runs.append(Job(request.name, request, error=job.error))
            continue
        place, name = job.experiment.folder(in_sweep=True), job.experiment.run_id
        if len(asked_for[place]) > 1:
            name += f"-{digest(job.experiment.measured)}"
            place = place.with_name(name)
        done = None if job.experiment.force else completed(job.experiment, place, name)
        request = replace(request, name=name, folder=str(place))
        runs.append(Job(request.name, request, job.experiment, done=done))
    folders = list(dict.fromkeys(run.request.path.parent for run in runs if run.experiment))
    if len(folders) > 1:
        raise ConfigError(
            f"output_dir is {', '.join(map(str, folders))}: a sweep has one folder, with the steps that its runs "
            "share. Give output_dir one value, or make a sweep for each."
        )
    folder = folders[0] if folders else folder
    return Plan(label, folder, tuple(_linked(runs, folder)))


def _linked(runs: Sequence[Job], folder: Path) -> list[Job]:
    """The shared steps, and the runs with what they need."""
    pending = [(index, run.experiment) for index, run in enumerate(runs) if run.is_pending and run.experiment]
    needs: dict[int, set[str]] = {index: set() for index, _ in pending}
    shared: dict[str, Job] = {}
    keys = {"texts": _texts_key, "dense": _dense_key, "statistics": statistics_key, "pruned": _pruned_key}
    for part, key_of in keys.items():
        for key, members in _groups(pending, key_of).items():
            step = _step(part, key, [runs[index] for index in members], folder)
            shared[step.name] = step
            for index in members:
                needs[index].add(step.name)
    _order_pruned(shared, needs)
    _await_texts(shared)

    makers: dict[Hashable, str] = {}  # of distillation targets
    names: dict[str, list[str]] = {}  # of jobs by folder
    linked = list(runs)
    for index, experiment in pending:
        run = runs[index]
        if (key := _targets_key(experiment)) is not None:
            needs[index] |= {makers.setdefault(key, run.name)} - {run.name}
        earlier = names.setdefault(run.request.folder, [])
        if earlier:  # the same run, tracked or saved in another way: one record, one after the other
            needs[index].add(earlier[-1])
            run = replace(run, name=f"{run.name} ({len(earlier) + 1})")
        earlier.append(run.name)
        linked[index] = replace(run, needs=frozenset(needs[index]))
    return [*shared.values(), *linked]


def _order_pruned(shared: dict[str, Job], needs: Mapping[int, set[str]]) -> None:
    """Let choices of layers wait for the statistics of their runs, and searches for the longest of their kind."""
    longest: dict[Hashable, tuple[int, str]] = {}
    searches: dict[str, Hashable] = {}
    for name, step in shared.items():
        if step.request.part == "pruned" and step.experiment:
            experiment, n = step.experiment, step.experiment.num_units
            if n is not None and not experiment.pruner.chooser.statistics(n):
                searches[name] = key = (statistics_key(experiment), digest(identity(experiment.pruner)))
                longest[key] = max(longest.get(key, (0, "")), (n, name))
    for name, step in shared.items():
        if step.request.part == "pruned":
            together = [others for others in needs.values() if name in others]
            before = {other for others in together for other in others if other.startswith("statistics-")}
            if name in searches:
                before |= {longest[searches[name]][1]} - {name}
            shared[name] = replace(step, needs=frozenset(before))


def _await_texts(shared: dict[str, Job]) -> None:
    """Let steps wait for the texts that they read."""
    makers = {_texts_key(step.experiment): name for name, step in shared.items() if step.request.part == "texts"}
    for name, step in shared.items():
        if step.request.part != "texts" and (maker := makers.get(_texts_key(step.experiment))):
            shared[name] = replace(step, needs=step.needs | {maker})


def _groups(runs: Iterable[tuple[int, Experiment]], key: Callable[[Experiment], Hashable]) -> dict[Hashable, list[int]]:
    """Runs with the same key, where there are at least two."""
    groups: dict[Hashable, list[int]] = {}
    for index, experiment in runs:
        if (value := key(experiment)) is not None:
            groups.setdefault(value, []).append(index)
    return {value: members for value, members in groups.items() if len(members) > 1}


def _step(part: str, key: Hashable, members: Sequence[Job], folder: Path) -> Job:
    """A shared step; one whose record is complete is done."""
    first = members[0].request
    overrides = tuple(member.request.overrides[0] for member in members) if part == "statistics" else first.overrides
    name = f"{part}-{digest([key, overrides]) if part == 'statistics' else digest(key)}"
    request = replace(first, part=part, name=name, folder=str(folder / SHARED / name), overrides=overrides)
    record = state_of(request.path).record
    is_done = record is not None and record.status == "completed" and first.since is None
    return Job(name, request, members[0].experiment, done=record if is_done else None)


def _texts_key(experiment: Experiment | None) -> Hashable:
    """The generated texts that a run reads; None where it reads none."""
    texts = [
        [identity(corpus), split]
        for reader in (experiment.readers if experiment is not None else ())
        for corpus, split in reader.corpus.sources(reader.purpose)
        if corpus.needs_model
    ]
    return digest([identity(experiment.model), texts]) if experiment is not None and texts else None


def _dense_key(experiment: Experiment) -> Hashable:
    if "dense" not in experiment.stages or not experiment.evaluations:
        return None
    return digest([identity(experiment.model), experiment.measured])


def statistics_key(experiment: Experiment) -> Hashable:
    """The model and the calibration tokens: what runs with the same statistics have in common."""
    calibration = replace(experiment.calibration, corpus=experiment.calibration_reader.corpus)
    cut = (experiment.num_held_out, experiment.spares_blocks, experiment.seed)
    sized_for = name_of(experiment.patch) if calibration.is_sized_by_patch else None
    return digest([identity(experiment.model), identity(calibration), *cut, sized_for])


def _pruned_key(experiment: Experiment) -> Hashable:
    """The choice of layers; where evaluations differ, the step makes those of its first run.

    None where a budget decides how many, which it does with the patch.
    """
    if experiment.limit is not None:
        return None
    pruner, patch = experiment.pruner, experiment.patch_seen
    seen = None if patch is None else identity(patch)
    return digest([statistics_key(experiment), identity(pruner), experiment.num_units, seen])


def _targets_key(experiment: Experiment) -> Hashable:
    training = experiment.training
    if training is None or training.keeping is None:
        return None
    text: Any = replace(experiment.distillation, corpus=experiment.distillation_reader.corpus)
    return digest([identity(experiment.model), identity(text), experiment.seed, name_of(training)])
