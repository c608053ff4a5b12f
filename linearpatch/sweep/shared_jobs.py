"""What the runs of a sweep share, as work of its own: it fills the cache, from which they read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from linearpatch.distillation.training import NoDistillation
from linearpatch.evaluation.measure import measure
from linearpatch.experiment import Experiment
from linearpatch.models.edit import DENSE, Edit
from linearpatch.patches.none import NoPatch
from linearpatch.pipeline import prepare, size_of, workspace_of
from linearpatch.preparation import Prepared
from linearpatch.results.questions import Answers
from linearpatch.results.record import Record
from linearpatch.results.recording import recording
from linearpatch.results.stages import STAGES
from linearpatch.results.state import occupied
from linearpatch.selection import rank, statistics_of
from linearpatch.storage.cache import Cache

log = logging.getLogger(__name__)


def generate_texts(experiment: Experiment, cache: Cache, record: Record, folder: Path) -> None:
    """Let the dense model generate all texts that a run reads of it."""
    with _working(record, folder):
        prepare(experiment, record, cache)


def measure_dense(experiment: Experiment, cache: Cache, record: Record, folder: Path) -> None:
    """Measure the dense model."""
    with _working(record, folder):
        prepared = prepare(_plain(experiment), record, cache)
        _measure(experiment, prepared, {"dense": DENSE}, cache, record, folder)


def collect_statistics(experiments: Sequence[Experiment], cache: Cache, record: Record, folder: Path) -> None:
    """One pass over the calibration tokens for all that pruners and patches of several runs will ask."""
    with _working(record, folder):
        prepared = prepare(replace(_plain(experiments[0]), eval={}), record, cache, sized_for=experiments[0].patch)
        with record.step("rank"):
            fitted = [experiment.for_model(prepared.model.decoder) for experiment in experiments]
            statistics = [asked for one in fitted for asked in statistics_of(one.pruner, one.patch, one.num_units)]
            workspace_of(experiments[0], prepared, cache).collect(*statistics)


def measure_pruned(experiment: Experiment, cache: Cache, record: Record, folder: Path) -> None:
    """Choose the layers that go, and measure the model without them."""
    with _working(record, folder):
        plain = _plain(experiment)
        prepared = prepare(plain, record, cache, sized_for=experiment.patch)
        plain = _plain(experiment.for_model(prepared.model.decoder))
        with record.step("rank"):
            workspace = workspace_of(plain, prepared, cache)
            edit = rank(plain.pruner, plain.patch, workspace, size_of(plain, workspace, record))
        record.pruning = plain.pruner.chooser.section(prepared.model.decoder, edit)
        if "pruned" in experiment.measured_stages:
            _measure(experiment, prepared, {"pruned": edit}, cache, record, folder)


def _measure(
    experiment: Experiment,
    prepared: Prepared,
    stages: Mapping[str, Edit],
    cache: Cache,
    record: Record,
    folder: Path,
) -> None:
    """Measure what doesn't depend on the other stages' models."""
    alone = [measurement for measurement in prepared.measurements if not measurement.together]
    with Answers(folder) as answers:
        measure(prepared.model, stages, experiment.evaluations, alone, cache, record, answers)


def _plain(experiment: Experiment) -> Experiment:
    """The experiment up to its patch, which stays where the pruner looks at it."""
    return replace(
        experiment,
        calibration=replace(
            experiment.calibration, held_out_blocks=experiment.num_held_out or experiment.calibration.held_out_blocks
        ),
        patch=experiment.patch_seen or NoPatch(compare=experiment.patch.compare),
        distill=NoDistillation(),
        stages=list(STAGES),
        save_model=False,
        save_format="auto",
        push_to_hub=None,
    )


@contextmanager
def _working(record: Record, folder: Path) -> Iterator[None]:
    with occupied(folder), recording(record, folder):
        yield
