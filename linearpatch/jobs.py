"""From Hydra's configurations to runs: one in this process, or a sweep of them in processes of their own."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from linearpatch.config import CONF_DIR, check_choices, readable_errors, resolved, to_experiment
from linearpatch.errors import ConfigError
from linearpatch.experiment import check_group, digest
from linearpatch.progress import steps
from linearpatch.results.record import Record
from linearpatch.run import run
from linearpatch.storage import check_folder
from linearpatch.sweep.estimate import Estimate, estimate
from linearpatch.sweep.launchers import launcher_of
from linearpatch.sweep.manifest import write_manifest
from linearpatch.sweep.plan import Asked, Plan, plan_sweep
from linearpatch.sweep.schedule import Outcome, execute
from linearpatch.sweep.tables import duration
from linearpatch.words import counted
from linearpatch.workers import Workers

log = logging.getLogger(__name__)


class Jobs:
    """What Hydra calls: with a configuration, or (`hydra_plugins.linearpatch`) with the overrides of a sweep.

    Args:
        dry_run: Only plan.

    Attributes:
        record: That of the run, where there was one.
        folder: Where that is.
        plan: The sweep, where there was one.
        outcomes: What became of its runs, in order.
        estimates: With `dry_run`, what its jobs will cost …
        at_a_time: … and how many run together, where that is known.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.record: Record | None = None
        self.folder = Path()
        self.plan: Plan | None = None
        self.outcomes: list[Outcome] = []
        self.estimates: Mapping[str, Estimate] = {}
        self.at_a_time: int | None = None

    def __call__(self, config: DictConfig) -> None:
        """One run, in this process."""
        overrides = list(HydraConfig.get().overrides.task)
        experiment = to_experiment(config)
        check_folder(experiment.folder())
        if self.dry_run:
            asked = [Asked(tuple(overrides), replace(experiment, output_dir=str(experiment.folder().parent)))]
            self.plan, self.estimates = estimate(plan_sweep(asked, config.group or "run"))
            return
        self.folder = experiment.folder()
        command = shlex.join(["linearpatch", "run", *overrides])
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
    ) -> None:
        """Plan a sweep and run it.

        Args:
            name: Of the launcher.
            settings: Of the launcher.
            combinations: The overrides of each run.
            compose: Makes a run's configuration of them.
            config: The configuration that all share.

        Raises:
            ConfigError: the launcher can't do it.
        """
        if Workers.launched().count > 1:
            raise ConfigError(
                "A sweep starts a process for each run, and can't be started by several processes (accelerate, "
                "torchrun). Start it alone, or give one run at a time to several processes."
            )
        check_group(config.group)
        launcher = launcher_of(name, settings)
        sources = config.hydra.runtime.config_sources
        search_path = [source.path for source in sources if source.schema == "file" and source.path != str(CONF_DIR)]
        label = config.group or f"sweep-{digest(sorted(map(list, combinations)))}"
        asked = [_asked(overrides, label, compose) for overrides in combinations]
        self.plan = plan_sweep(
            asked,
            label,
            folder=Path(config.output_dir or "outputs"),
            search_path=search_path,
            since=time.time() if config.force else None,
        )
        check_folder(self.plan.folder)
        if self.dry_run:
            self.plan, self.estimates = estimate(self.plan)
            self.at_a_time = launcher.at_a_time
            return
        pending = sum(job.is_pending for job in self.plan.runs)
        runs = counted(len(self.plan.runs), "run")
        log.info("sweep %s: %s, %d to do, %s", label, runs, pending, launcher.describe())
        write_manifest(self.plan)
        with steps("runs", len(self.plan.runs)) as on_step:

            def tell(outcome: Outcome) -> None:
                if outcome.job.is_run:
                    on_step()
                if outcome.job.is_pending:
                    error = f": {outcome.record.error}" if outcome.record.error else ""
                    took = f", {duration(outcome.seconds)}" if outcome.seconds is not None else ""
                    level = logging.INFO if outcome.record.status == "completed" else logging.ERROR
                    log.log(level, "%s %s%s%s", outcome.job.name, outcome.record.status, took, error)

            self.outcomes = execute(self.plan, launcher, tell)


def _asked(overrides: Sequence[str], label: str, compose: Callable[[Sequence[str]], DictConfig]) -> Asked:
    """One run of a sweep, or why it is impossible."""
    try:
        check_choices(overrides)
        with readable_errors():
            config = compose(overrides)
        with open_dict(config):
            del config["hydra"]
        config.group = config.group or label
        return Asked(tuple(overrides), to_experiment(config))
    except ConfigError as error:
        return Asked(tuple(overrides), error=error)
    except (ValueError, TypeError) as error:  # Hydra's own, of values that a group can't have
        return Asked(tuple(overrides), error=ConfigError(f"{' '.join(overrides)}: {error}"))
