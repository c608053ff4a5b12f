"""Where the jobs of a sweep run: one file for each choice of `hydra/launcher`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from linearpatch.config_errors import readable_errors
from linearpatch.errors import require_choice
from linearpatch.sweep.launchers.basic import BasicLauncher
from linearpatch.sweep.launchers.ray import RayLauncher
from linearpatch.sweep.launchers.slurm import SlurmLauncher
from linearpatch.sweep.launching import Launcher

log = logging.getLogger(__name__)

LAUNCHERS: Mapping[str, type[Launcher]] = {
    "basic": BasicLauncher,
    "joblib": BasicLauncher,  # its name until the next release
    "ray": RayLauncher,
    "slurm": SlurmLauncher,
}


def launcher_of(name: str, settings: Mapping[str, Any]) -> Launcher:
    """The launcher of a name, with settings that have been checked.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    require_choice("hydra.launcher.name", name, LAUNCHERS)
    if name == "joblib":
        log.warning(
            "hydra/launcher=joblib will be removed: it is hydra/launcher=basic hydra.launcher.n_jobs=-1 "
            "hydra.launcher.gpus_per_job=0."
        )
    with readable_errors():
        launcher = OmegaConf.to_object(OmegaConf.merge(_open(LAUNCHERS[name]), dict(settings)))
    assert isinstance(launcher, Launcher)
    return launcher


def _open(cls: type[Launcher]) -> Any:
    """A class as a schema; OmegaConf would make that of a frozen one read-only."""
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, None)
    return schema
