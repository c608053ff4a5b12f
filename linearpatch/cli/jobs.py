"""From Hydra's configurations to runs: one in this process, or a sweep of them in processes of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from linearpatch.choices import CONF_DIR
from linearpatch.config import check_choices, job_config, resolved, settle_texts, to_experiment
from linearpatch.config_errors import readable_errors
from linearpatch.errors import ConfigError, check_group
from linearpatch.experiment import digest
from linearpatch.overrides import command as repeating
from linearpatch.overrides import expanded
from linearpatch.pipeline import run
from linearpatch.registry import LIST_GROUPS
from linearpatch.results.record import Record
from linearpatch.results.state import clear_up
from linearpatch.runtime.distributed import Workers
from linearpatch.runtime.progress import steps
from linearpatch.storage.files import check_folder
from linearpatch.storage.leftovers import tidied
from linearpatch.sweep.feasibility import checked
from linearpatch.sweep.launchers import launcher_of
from linearpatch.sweep.manifest import FOLDER, listed, working_on
from linearpatch.sweep.plan import SHARED, Plan, PlannedRun, plan_sweep
from linearpatch.sweep.schedule import Outcome, execute
from linearpatch.sweep.search import Search, SearchSettings
from linearpatch.sweep.space import Space
from linearpatch.sweep.tables import duration
from linearpatch.text import counted

log = logging.getLogger(__name__)


class Jobs:
    """What Hydra calls: with a configuration, or (`hydra_plugins.linearpatch`) with the overrides of a sweep.

    Args:
        dry_run: Only plan.
        command: What was typed, which does all of it again; None puts it together from the overrides.

    Attributes:
        record: That of the run, where there was one.
        folder: Where that is.
        plan: The sweep, where there was one.
        outcomes: What became of its runs, in order.
        at_a_time: With `dry_run`, jobs that run together, where that is known.
        trials: The search, where there was one.
    """

    def __init__(self, *, dry_run: bool = False, command: str | None = None) -> None:
        self.dry_run = dry_run
        self._command = command
        self.record: Record | None = None
        self.folder = Path()
        self.plan: Plan | None = None
        self.outcomes: list[Outcome] = []
        self.at_a_time: int | None = None
        self.trials: Search | None = None
        self._config: DictConfig | None = None
        self._overrides: list[str] = []
        self._choices: dict[str, Any] = {}

    def __call__(self, config: DictConfig) -> None:
        """Keep a configuration for `run`: Hydra would put a line of its own before an error in here."""
        composed = HydraConfig.get()
        with open_dict(config):
            config.hydra = composed
        self._config = job_config(config)
        self._overrides = list(composed.overrides.task)
        self._choices = _choices(composed.runtime.choices, config)

    def configuration(self, *, resolve: bool = False) -> str:
        """What was composed, as YAML, with the names of what was chosen."""
        assert self._config is not None
        names = OmegaConf.to_yaml(OmegaConf.create({"choices": self._choices}))
        return f"{names}{OmegaConf.to_yaml(self._config, resolve=resolve)}".rstrip()

    def run(self) -> None:
        """One run, in this process, where Hydra composed one."""
        if self._config is None:
            return
        config, overrides = self._config, self._overrides
        experiment = to_experiment(config)
        check_folder(experiment.folder())
        if self.dry_run:
            asked = [PlannedRun(tuple(overrides), replace(experiment, output_dir=str(experiment.folder().parent)))]
            self.plan = checked(plan_sweep(asked, config.group or "run"))
            return
        self.folder = experiment.folder()
        command = self._command or repeating(overrides)
        log.info("run %s", experiment.run_id)
        self.record = run(experiment, self.folder, config=resolved(config), command=command)

    def sweep(
        self,
        name: str,
        settings: Mapping[str, Any],
        combinations: Sequence[Sequence[str]],
        *,
        compose: Callable[[Sequence[str]], DictConfig],
        config: DictConfig,
        label: str | None = None,
        trials_left: int = 0,
    ) -> None:
        """Plan a sweep and run it.

        Args:
            name: Of the launcher.
            settings: Of the launcher.
            combinations: The overrides of each run.
            compose: Makes a run's configuration of them.
            config: The configuration that all share.
            label: The group of its runs, unless they have another; None: one that follows from the combinations.
            trials_left: Of a search: how many trials come after these.

        Raises:
            ConfigError: the launcher can't do it.
        """
        if Workers.launched().count > 1:
            raise ConfigError(
                "A sweep starts a process for each run, and can't be started by several processes (accelerate, "
                "torchrun). Start it alone, or give one run at a time to several processes."
            )
        with readable_errors():
            settle_texts(config)
        check_group(config.group)
        launcher = launcher_of(name, settings)
        sources: Any = OmegaConf.to_container(config.hydra.runtime.config_sources)  # paths as they are, also with ${
        folders = [source["path"] for source in sources if source["schema"] == "file"]
        search_path = [folder for folder in folders if folder != str(CONF_DIR.resolve())]
        label = config.group or label or f"sweep-{digest(sorted(map(list, combinations)))}"
        asked = []
        with steps("planning", len(combinations)) as on_step:
            for overrides in combinations:
                asked.append(_asked(overrides, label, compose))
                on_step()
        self.plan = plan_sweep(
            asked,
            label,
            folder=Path(config.output_dir or "outputs"),
            search_path=search_path,
            since=time.time() if config.force else None,
        )
        check_folder(self.plan.folder)
        if self.dry_run:
            self.plan = checked(self.plan)
            self.at_a_time = launcher.at_a_time
            return
        pending = sum(job.is_pending for job in self.plan.runs)
        runs = counted(len(self.plan.runs), "run")
        log.info("sweep %s: %s, %d to do, %s", label, runs, pending, launcher.describe())
        caches = {request.experiment.cache_path for request in asked if request.experiment is not None}
        with (
            tidied(caches, [self.plan.folder / FOLDER]),
            listed(self.plan, self._command or "", trials_left=trials_left),
            steps("runs", len(self.plan.runs)) as on_step,
        ):

            def report(outcome: Outcome) -> None:
                if outcome.job.is_run:
                    on_step()
                if outcome.job.is_pending:
                    error = f": {outcome.record.error}" if outcome.record.error else ""
                    took = f", {duration(outcome.seconds)}" if outcome.seconds is not None else ""
                    level = logging.INFO if outcome.record.status == "completed" else logging.ERROR
                    log.log(level, "%s %s%s%s", outcome.job.name, outcome.record.status, took, error)

            self.outcomes = execute(self.plan, launcher, report, fail_fast=bool(config.fail_fast))
            for place in (self.plan.folder / SHARED).glob("*"):
                clear_up(place)

    def search(
        self,
        name: str,
        settings: Mapping[str, Any],
        search: SearchSettings,
        parsed: Sequence[Any],
        *,
        compose: Callable[[Sequence[str]], DictConfig],
        config: DictConfig,
    ) -> None:
        """Search settings: trials are runs of one sweep that grows.

        Args:
            name: Of the launcher.
            settings: Of the launcher.
            search: How it is done.
            parsed: Overrides as Hydra parses them, some with several values.
            compose: Makes a run's configuration of overrides.
            config: The configuration that all share.

        Raises:
            ConfigError: the launcher can't do it, or the study in the folder is of another search.
        """
        space = Space.of(parsed)
        label = config.group or f"search-{digest(space.describe())}"
        if self.dry_run:
            log.info("search %s: %s of %s", label, counted(search.n_trials, "trial"), space.describe())
            return
        folder = Path(config.output_dir or "outputs")
        self.trials = Search(search, space, folder, label)

        def run_all(combinations: Sequence[Sequence[str]], trials_left: int) -> list[Record | None]:
            self.sweep(
                name, settings, combinations, compose=compose, config=config, label=label, trials_left=trials_left
            )
            return [outcome.record for outcome in self.outcomes]

        at_a_time = launcher_of(name, settings).at_a_time or 1
        with working_on(folder, label):  # also between two batches
            self.trials.run(run_all, at_a_time, fail_fast=bool(config.fail_fast))


def _choices(chosen: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """The names of what was chosen, by group; of some there may be several, and settings of unused ones."""
    names = {str(group): name for group, name in chosen.items() if name and not str(group).startswith("hydra/")}
    lists = {
        group: [name for name in config[group] if OmegaConf.get_type(config[group], name) is not dict]
        for group in LIST_GROUPS
    }
    return {**dict(reversed(names.items())), **lists}


def _asked(overrides: Sequence[str], label: str, compose: Callable[[Sequence[str]], DictConfig]) -> PlannedRun:
    """One run of a sweep, or why it is impossible."""
    try:
        overrides = expanded(overrides)
        check_choices(overrides)
        with readable_errors():
            config = job_config(compose(overrides))
        config.group = config.group or label
        return PlannedRun(tuple(overrides), to_experiment(config))
    except ConfigError as error:
        return PlannedRun(tuple(overrides), error=error)
    except (ValueError, TypeError) as error:  # Hydra's own, of values that a group can't have
        return PlannedRun(tuple(overrides), error=ConfigError(f"{' '.join(overrides)}: {error}"))
