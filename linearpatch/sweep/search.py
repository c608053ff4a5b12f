"""A search by Optuna on our own runner: it asks for trials, runs them as a sweep does, and tells what they measured.

The study is a file in the sweep's folder. Trials that were running when the process was killed are run again under
their own numbers, so that a search that resumes ends with as many trials as one that never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linearpatch.errors import ConfigError, StorageError, require_choice, require_range, require_seed
from linearpatch.results.record import Record
from linearpatch.storage.files import make_folder
from linearpatch.sweep.objectives import objectives_of
from linearpatch.sweep.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

FILE = "study.db"
DRAFTS = ".drafts"  # their runs, in the sweep's folder; reports leave them out
SAMPLERS = ("tpe", "random", "nsga2")
STARTUP = 5  # trials whose drafts are only compared with

# Runs combinations of overrides, and returns the record of each; None where a run wasn't started. The number is how
# many trials come after them.
RunAll = Callable[[Sequence[Sequence[str]], int], Sequence[Record | None]]


@dataclass(frozen=True)
class SearchSettings:
    """How a search is done.

    Attributes:
        objectives: What it looks for, such as `minimize ppl/wikitext2`; several give a Pareto front.
        n_trials: Trials in all, those of earlier calls included.
        at_a_time: Trials that are asked for together; null: as many as the launcher runs.
        sampler: `tpe`, `random` or `nsga2`.
        seed: Of the sampler.
        draft: Overrides of a cheap run that comes before each trial's, such as `[calibration.num_blocks=4]`: a trial
            whose draft is worse than the median of the others' isn't run. Empty: every trial is run.
    """

    objectives: Sequence[str] = ("minimize ppl",)
    n_trials: int = 20
    at_a_time: int | None = None
    sampler: str = "tpe"
    seed: int = 0
    draft: Sequence[str] = ()

    def __post_init__(self) -> None:
        goals = objectives_of(self.objectives)
        require_range("hydra.sweeper.n_trials", self.n_trials, low=1)
        if self.at_a_time is not None:
            require_range("hydra.sweeper.at_a_time", self.at_a_time, low=1)
        require_choice("hydra.sweeper.sampler", self.sampler, SAMPLERS)
        require_seed("hydra.sweeper.seed", self.seed)
        if self.draft and len(goals) > 1:
            raise ConfigError(
                "hydra.sweeper.draft compares trials by one objective, and there are "
                f"{len(goals)}. Leave draft empty, or give one objective."
            )


class Search:
    """Trials of a study.

    Args:
        settings: How it is done.
        space: What varies.
        folder: Of the sweep, with the study's file.
        label: The study's name.

    Raises:
        ConfigError: Optuna isn't installed, or the study in the folder is of another search.
    """

    def __init__(self, settings: SearchSettings, space: Space, folder: Path, label: str) -> None:
        self.settings = settings
        self.space = space
        self.folder = folder
        self.objectives = objectives_of(settings.objectives)
        self.study = self._open(label)

    def run(self, run_all: RunAll, at_a_time: int, *, fail_fast: bool = False) -> None:
        """Run trials until there are as many as asked for.

        Args:
            run_all: Runs some trials, those before included, so that one sweep lists all.
            at_a_time: Trials that run together, unless the settings say so.
            fail_fast: Stop when one fails.
        """
        from optuna.trial import Trial, TrialState

        at_a_time = self.settings.at_a_time or at_a_time
        open_trials = [trial for trial in self.study.trials if trial.state == TrialState.RUNNING]
        waiting = [Trial(self.study, trial._trial_id) for trial in open_trials]
        if waiting:
            log.info("study %s: %d trials were interrupted, and are run again", self.study.study_name, len(waiting))
        while True:
            missing = self.settings.n_trials - len(self.study.trials)
            batch = [waiting.pop(0) for _ in range(min(at_a_time, len(waiting)))]
            batch += [self.study.ask(dict(self.space.varied)) for _ in range(min(at_a_time - len(batch), missing))]
            if not batch:
                return
            trials_left = self.settings.n_trials - len(self.study.trials) + len(waiting)
            failures = self._run(batch, run_all, trials_left)
            if failures and fail_fast:
                return

    def _run(self, batch: Sequence[Trial], run_all: RunAll, trials_left: int) -> int:
        """Run some trials and report their values to the study; return how many failed."""
        from optuna.trial import TrialState

        batch = self._promising(batch, run_all, trials_left) if self.settings.draft else batch
        done = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        combinations = list(dict.fromkeys(tuple(self._overrides(trial.params)) for trial in (*done, *batch)))
        # Also where drafts left none of the batch: the sweep's list then says how many trials are left.
        records = dict(zip(combinations, run_all(combinations, trials_left), strict=True)) if combinations else {}
        failures = 0
        for trial in batch:
            record = records[tuple(self._overrides(trial.params))]
            values, reason = self._values(record)
            if record is not None:
                trial.set_user_attr("run_id", record.run_id)
            if values is None:
                failures += 1
                trial.set_user_attr("error", reason)
                log.error("trial %d failed: %s", trial.number, reason)
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, values)
        return failures

    def _promising(self, batch: Sequence[Trial], run_all: RunAll, trials_left: int) -> list[Trial]:
        """Those of some trials whose drafts aren't worse than the median of all others'."""
        from optuna.trial import TrialState

        folder = f"output_dir={self.folder / DRAFTS}"
        drafts = [[*self._overrides(trial.params), *self.settings.draft, folder] for trial in batch]
        promising = []
        for trial, record in zip(batch, run_all(drafts, trials_left), strict=True):
            values, reason = self._values(record)
            if values is None:
                promising.append(trial)  # the run itself says what is wrong
                log.warning("the draft of trial %d failed: %s", trial.number, reason)
                continue
            if 0 not in self.study.trials[trial.number].intermediate_values:
                trial.report(values[0], 0)
            if trial.should_prune():
                log.info("trial %d is pruned: its draft is worse than the median", trial.number)
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                promising.append(trial)
        return promising

    def _values(self, record: Record | None) -> tuple[list[float] | None, str]:
        """The objectives of a run, or why it has none."""
        if record is None or record.status != "completed":
            return None, (record.error if record else None) or "it wasn't completed"
        try:
            return [objective.value(record) for objective in self.objectives], ""
        except ConfigError as error:
            return None, str(error)

    def _overrides(self, chosen: Mapping[str, Any]) -> list[str]:
        return self.space.overrides(chosen)

    def _open(self, label: str) -> Study:
        optuna = _optuna()
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        make_folder(self.folder)
        file = (self.folder / FILE).resolve()
        try:
            study: Study = optuna.create_study(
                study_name=label,
                storage=f"sqlite:///{file}",
                directions=[objective.direction for objective in self.objectives],
                sampler=self._sampler(optuna, file),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
                load_if_exists=True,
            )
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise StorageError(f"{file} is not an Optuna study, or can't be written. Move it away.") from error
        asked = {"space": self.space.describe(), "objectives": list(self.settings.objectives)}
        for what, value in asked.items():
            earlier = study.user_attrs.get(what, value)
            if earlier != value:
                raise ConfigError(
                    f"{file} holds the study of another search: its {what} is {earlier}, here it is {value}. Use "
                    "another output_dir or group, or the same settings."
                )
            study.set_user_attr(what, value)
        return study

    def _sampler(self, optuna: Any, file: Path) -> BaseSampler:
        """A sampler; a resumed study seeds it differently, so that it doesn't repeat earlier suggestions."""
        begun = 0
        if file.exists():
            summaries = optuna.get_all_study_summaries(f"sqlite:///{file}")
            begun = sum(summary.n_trials for summary in summaries)
        seed = (self.settings.seed + begun) % 2**32
        chosen: BaseSampler = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        }[self.settings.sampler]()
        return chosen

    @property
    def is_complete(self) -> bool:
        """Whether there are as many trials as asked for, and none failed."""
        counts = counts_of(self.study.trials)
        return len(self.study.trials) >= self.settings.n_trials and not counts.keys() - {"complete", "pruned"}

    def best(self) -> list[tuple[FrozenTrial, list[float]]]:
        """The best trial, or those that no other beats in all objectives."""
        from optuna.trial import TrialState

        if not self.study.get_trials(states=[TrialState.COMPLETE]):
            return []
        return [(trial, list(trial.values)) for trial in self.study.best_trials]


def counts_of(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """How many trials are in each state."""
    counts: dict[str, int] = {}
    for trial in trials:
        name = trial.state.name.lower()
        counts[name] = counts.get(name, 0) + 1
    return counts


def _optuna() -> Any:
    """Optuna.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=optuna needs Optuna. Run: pip install 'linearpatch[optuna]'") from error
    return optuna
