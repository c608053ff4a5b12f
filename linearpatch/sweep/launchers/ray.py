"""Jobs on the GPUs of this machine or of a cluster, scheduled by Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from linearpatch.errors import ConfigError, require_range
from linearpatch.sweep.launching import Ending, Launcher, Submit, run_process
from linearpatch.sweep.request import Request
from linearpatch.text import counted


@dataclass(frozen=True)
class RayLauncher(Launcher):
    """Each job is a Ray task that watches over a process; a dead worker or node costs one job, not the sweep.

    Attributes:
        address: `null` starts Ray on this machine, `auto` joins the running cluster, or its address.
        num_cpus: Cores that Ray reserves for a job; a fraction is possible.
        num_gpus: GPUs for a job; null is one where there is one. A fraction lets several jobs share one.
        memory_gb: Main memory that Ray reserves for a job; null: none.
        resources: Other resources of the cluster, by name.
        init: More arguments of `ray.init`.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    memory_gb: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_range("hydra.launcher.num_cpus", self.num_cpus, low=0)
        if self.num_gpus is not None:
            require_range("hydra.launcher.num_gpus", self.num_gpus, low=0)
        cores = self.init.get("num_cpus") or os.cpu_count() or 1
        if self.address is None and self.num_cpus > cores:
            raise ConfigError(
                f"hydra.launcher.num_cpus is {self.num_cpus:g}, and this machine has {counted(cores, 'core')}. Lower "
                "it, or join a larger cluster (hydra.launcher.address)."
            )

    def describe(self) -> str:
        """Where jobs run."""
        where = "on this machine" if self.address is None else f"on the cluster {self.address}"
        gpus = "one GPU where there is one" if self.num_gpus is None else counted(self.num_gpus, "GPU")
        return f"as Ray schedules them {where}, {counted(self.num_cpus, 'core')} and {gpus} each"

    @contextmanager
    def opened(self) -> Iterator[Submit]:
        """Start Ray or join it."""
        if self.address is None and "ray" not in sys.modules:  # Ray reads it when it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # the default of newer versions, which they announce
        ray = _ray()
        # Without an address Ray would join a cluster that it finds running.
        where = {"address": "local", "include_dashboard": False} if self.address is None else {"address": self.address}
        settings = {"log_to_driver": False, "configure_logging": False, **where, **self.init}
        try:
            ray.init(**settings)
        except Exception as error:  # Ray raises many kinds
            raise ConfigError(
                f"Ray can't be started or joined (hydra.launcher.address={self.address}): {error}"
            ) from error
        resources = ray.cluster_resources()
        gpus = self.num_gpus if self.num_gpus is not None else float(resources.get("GPU", 0) > 0)
        self._check(resources, gpus)
        # A task that dies must not be run again behind our back: the record says what happened.
        task = ray.remote(run_process).options(
            num_cpus=self.num_cpus,
            num_gpus=gpus,
            memory=None if self.memory_gb is None else int(self.memory_gb * 2**30),
            resources=self.resources or None,
            max_retries=0,
        )
        environment = {
            name: os.environ[name] for name in os.environ if name.startswith(("LINEARPATCH_", "WANDB_", "HF_"))
        }
        if gpus == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""

        def submit(requests: Sequence[Request]) -> list[Future[Ending]]:
            return [task.remote(request.to_text(), environment).future() for request in requests]

        try:
            yield submit
        finally:
            ray.shutdown()

    def _check(self, available: dict[str, float], gpus: float) -> None:
        """Reject what no node can ever give, since Ray would wait for it forever."""
        for name, needed in {"CPU": self.num_cpus, "GPU": gpus, **self.resources}.items():
            if needed > available.get(name, 0):
                _ray().shutdown()
                raise ConfigError(
                    f"A job asks for {needed:g} {name}, and Ray has {available.get(name, 0):g}. Lower "
                    f"hydra.launcher.num_{name.lower()}s, or join a larger cluster (hydra.launcher.address)."
                )


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about its next default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    os.environ.setdefault("RAY_worker_niceness", "0")  # a job is no less important than other work
    try:
        import ray
    except ImportError as error:
        raise ConfigError("hydra/launcher=ray needs Ray. Run: pip install 'linearpatch[ray]'") from error
    return ray
