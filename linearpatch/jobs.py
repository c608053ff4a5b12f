"""From Hydra's jobs to runs: one call for each job, and what became of all of them."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from linearpatch.config import resolved, to_experiment
from linearpatch.errors import LinearPatchError
from linearpatch.results.record import Record, read_record
from linearpatch.run import run
from linearpatch.workers import Workers

log = logging.getLogger(__name__)


class Jobs:
    """The function Hydra calls with each job's configuration.

    A job that fails doesn't raise, so that the others of a sweep go on and the failure is told in our own
    words, once.

    Attributes:
        records: What became of each job, in order.
        folder: Where the last job's run is.
        in_sweep: Whether Hydra runs a sweep.
        errors: What the failed jobs raised.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.errors: list[Exception] = []
        self.folder = Path()
        self.in_sweep = False
        self._label = time.strftime("sweep-%Y%m%d-%H%M%S")

    def __call__(self, config: DictConfig) -> None:
        """Run one job."""
        context = HydraConfig.get()
        overrides = list(context.overrides.task)
        self.in_sweep = context.mode == RunMode.MULTIRUN
        if self.in_sweep and config.group is None:
            config.group = self._label
        record = Record(run_id=" ".join(overrides), group=config.group, command="", seed=config.seed, config={})
        try:
            experiment = to_experiment(config)
            record.run_id = experiment.run_id
            self.folder = experiment.folder(in_sweep=self.in_sweep)
            command = shlex.join(["linearpatch", "run", *overrides])
            log.info("run %s", experiment.run_id)
            record = run(experiment, self.folder, config=resolved(config), command=command)
        except Exception as error:
            self.errors.append(error)
            record = self._failed(record, error)
            if self.in_sweep and Workers.launched().count > 1:
                raise  # the other processes may wait for this one in the middle of the job
            if self.in_sweep:
                log.error("%s", error, exc_info=None if isinstance(error, LinearPatchError) else error)
        self.records.append(record)

    def _failed(self, record: Record, error: Exception) -> Record:
        """The record a failed run left, or one for the table alone where it left none."""
        try:
            left = read_record(self.folder)
        except LinearPatchError:
            left = None
        if left is not None and left.run_id == record.run_id and left.status == "failed":
            return left
        record.status, record.error = "failed", str(error)
        return record
