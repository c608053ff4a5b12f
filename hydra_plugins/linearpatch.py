"""How `linearpatch run -m` sweeps: combinations beside products, and jobs in processes of their own.

Hydra looks for plug-ins in this package. What they do is in `linearpatch.sweep`; nothing heavy is imported here,
since every application of Hydra in the same environment reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class LinearPatchLauncher(Launcher):  # type: ignore[misc]
    """Hands all combinations to LinearPatch's runner, which plans them as one sweep.

    Args:
        name: Of the launcher in `linearpatch.sweep.launchers`.
        settings: Its settings.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self.name = name
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.task_function = task_function
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the sweep."""
        from linearpatch.sweep.composing import Composer

        self.task_function.sweep(
            self.name,
            self.settings,
            job_overrides,
            compose=Composer(self.hydra_context.config_loader, self.config),
            config=self.config,
        )
        return []

    def search(self, settings: Mapping[str, Any], parsed: Sequence[Any]) -> Any:
        """Run trials of a search."""
        from linearpatch.sweep.composing import Composer
        from linearpatch.sweep.search import SearchSettings

        self.task_function.search(
            self.name,
            self.settings,
            SearchSettings(**settings),
            parsed,
            compose=Composer(self.hydra_context.config_loader, self.config),
            config=self.config,
        )
        return []


class LinearPatchSweeper(BasicSweeper):  # type: ignore[misc]
    """Products of all values, for each of some combinations.

    Args:
        params: Values by key, as on the command line, which may change them.
        combinations: Settings that go together, each a mapping; `sweep=FILE` reads them from a file. null: none.
        small: What takes their place at `scale=small`; null keeps them.
        scale: `full` or `small`.
        file: A YAML file of combinations in place of either; on the command line `sweep=FILE`.
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        combinations: Sequence[dict[str, Any]] | None = (),
        small: Sequence[dict[str, Any]] | None = None,
        scale: str = "full",
        file: str | None = None,
    ) -> None:
        super().__init__(None, params)
        self.file = file
        chosen = small if scale == "small" and small is not None else combinations or ()
        plain = OmegaConf.to_container(OmegaConf.create(list(chosen)), resolve=True)
        self.combinations: list[dict[str, Any]] = plain  # type: ignore[assignment]

    def sweep(self, arguments: list[str]) -> Any:
        """Split the arguments, and launch."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from linearpatch.sweep.combinations import as_overrides, read_combinations

        assert self.hydra_context is not None
        assert self.launcher is not None
        combinations = self.combinations if self.file is None else read_combinations(self.file)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: list[list[str]] = []
        for combination in combinations or [{}]:
            parsed = parser.parse_overrides([*self._parse_config(), *as_overrides(combination), *arguments])
            jobs += self.split_arguments(parsed, None)[0]
        distinct = {tuple(sorted(job)): job for job in jobs}  # the command line may make combinations equal
        return self.launcher.launch(list(distinct.values()), initial_job_idx=0)


class LinearPatchSearch(Sweeper):  # type: ignore[misc]
    """Trials that Optuna chooses, in place of every combination; see `linearpatch.sweep.search`.

    Args:
        params: Values, ranges and intervals by key, as on the command line, which may change them.
        combinations: Of an experiment that has some: there can't be any here.
        small: What takes their place at `scale=small`.
        scale: `full` or `small`.
        file: Of `sweep=FILE`: there can't be one here.
        settings: How it is done (`linearpatch.sweep.search.SearchSettings`).
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        combinations: Sequence[dict[str, Any]] | None = (),
        small: Sequence[dict[str, Any]] | None = None,
        scale: str = "full",
        file: str | None = None,
        **settings: Any,
    ) -> None:
        self.params = params or {}
        self.has_combinations = bool(combinations or small or file)
        self.settings = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Parse what varies, and search.

        Raises:
            ConfigError: there are combinations, which a search has none of.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from linearpatch.errors import ConfigError

        if self.has_combinations:
            raise ConfigError(
                "hydra/sweeper=optuna searches values of single settings, and this experiment or sweep=FILE has "
                "combinations. Leave one of them out."
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = [f"{key}={value}" for key, value in self.params.items()]
        return self.launcher.search(self.settings, parser.parse_overrides([*given, *arguments]))
