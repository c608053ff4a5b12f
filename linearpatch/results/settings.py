"""Which settings make a model, and which of them distinguish models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linearpatch.results.record import Record, flat
from linearpatch.results.stages import setting_groups

# Of the groups that make a model: where things run, how they are called, what they are read for besides.
ASIDE = frozenset(
    {
        "model.device", "model.device_map", "model.name", "model.note", "model.license",
        "corpus.note", "corpus.evaluation", "corpus.distillation", "calibration.batch_size",
        "distill.recompute", "distill.checkpoint_minutes", "distill.checkpoint_steps", "distill.targets",
    }
)  # fmt: skip
SEEDS = ("pruner.seed", "patch.seed", "distill.seed")  # as a rule the run's own
CHOSEN_FOR = "patch.chosen_for"  # the patch that a pruner foresaw: all that is left of it at stage pruned
CORPORA = ("corpus", "calibration.corpus", "distillation.corpus")


def settings(record: Record) -> dict[str, str]:
    """All settings of a run by dotted name; where a purpose has no corpus of its own, with the name of the run's."""
    values = flat(record.config)
    shared = values.get("corpus.name")
    for corpus in (corpus for corpus in CORPORA if corpus in values):  # null: it reads the run's
        del values[corpus]
        values[f"{corpus}.name"] = shared
    return {name: str(value) for name, value in values.items()}


def relevant(record: Record, stage: str) -> dict[str, str]:
    """The settings that make the model of a stage, by dotted name; but not the run's seed."""
    model, pruning, patch = record.require_edit()
    foreseen = stage == "pruned" and pruning.sees_patches
    groups = setting_groups("patched" if foreseen else stage)
    values = {
        name: value
        for name, value in settings(record).items()
        if name.partition(".")[0] in groups and name not in ASIDE and not (name in SEEDS and value == str(record.seed))
    }
    if foreseen:
        values[CHOSEN_FOR] = patch.method
    values["model.fingerprint"] = model.fingerprint
    values["model.dtype"] = model.dtype
    return values


def distinguishing_settings(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the settings that are not alike everywhere; of a corpus its name, where that says the rest.

    >>> distinguishing_settings([{"patch.ridge": "0.1", "corpus.name": "a", "corpus.path": "x"},
    ...          {"patch.ridge": "0.2", "corpus.name": "b", "corpus.path": "y"}])
    ['corpus.name', 'patch.ridge']
    """
    names = sorted({name for run in runs for name in run})
    varied = [name for name in names if len({run.get(name) for run in runs}) > 1]
    return [name for name in varied if not _follows(name, runs)]


def _follows(name: str, runs: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting of a corpus is known from its name, or the name of one purpose's from the run's corpus."""
    corpus = next((corpus for corpus in reversed(CORPORA) if name.startswith(f"{corpus}.")), None)
    if corpus is None or name == "corpus.name":
        return False
    leader = "corpus.name" if name == f"{corpus}.name" else f"{corpus}.name"
    pairs = {(run.get(leader), run.get(name)) for run in runs}
    return len({called for called, _ in pairs}) == len(pairs)
