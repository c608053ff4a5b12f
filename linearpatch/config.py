"""From YAML files and overrides to an `Experiment`, with errors a person can act on.

Hydra composes; the dataclasses of the components are the schema, so that unknown keys and wrong types fail
while composing, and impossible values when `OmegaConf.to_object` builds the objects. No `_target_`
anywhere: a saved configuration can't name code to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from linearpatch.errors import ConfigError, suggest
from linearpatch.experiment import Experiment
from linearpatch.registry import GROUPS, components

# In a checkout the YAMLs stand at the top, for people; in an installed package they come along inside.
_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"

# Groups whose choices are YAML files alone.
PRESET_GROUPS = ("experiment", "scale", "debug", "hydra/launcher")


@cache
def register_schemas() -> None:
    """Tell Hydra every component's schema: `NAME_schema`, and `NAME` itself where no YAML is shipped.

    Also the resolver `first_of`, the first of its values that isn't null.
    """
    OmegaConf.register_new_resolver("first_of", lambda *values: next(v for v in values if v is not None), replace=True)
    Plugins.instance()  # reads Hydra's own plug-ins, which store their schemas
    store = ConfigStore.instance()
    for group in ("launcher", "sweeper"):  # conf/hydra has its own `basic`, which isn't one of Hydra's class
        store.repo["hydra"][group].pop("basic.yaml", None)
    store.store(name="experiment_schema", node=_schema(Experiment))
    for group in GROUPS:
        for name, cls in components(group).items():
            package = f"eval.{name}" if group == "eval" else None
            store.store(group=group, name=f"{name}_schema", node=_schema(cls), package=package)
            if not (CONF_DIR / group / f"{name}.yaml").exists():
                store.store(group=group, name=name, node=_schema(cls), package=package)


def compose_experiment(overrides: Sequence[str] = ()) -> Experiment:
    """Compose an experiment as the command line does.

    >>> compose_experiment(["pruner=sleb", "num_pruned_layers=3"]).num_pruned_layers
    3

    Raises:
        ConfigError: a choice, key or value isn't possible.
    """
    return to_experiment(compose_config(overrides))


def compose_config(overrides: Sequence[str], search_path: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration as the command line does.

    Args:
        overrides: Such as `pruner=sleb`.
        search_path: Folders with more choices.

    Raises:
        ConfigError: a choice or key isn't possible.
    """
    register_schemas()
    check_choices(overrides)
    more = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in search_path)}]"] if search_path else []
    with readable_errors(), initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        config: DictConfig = compose("config", [*overrides, *more])
    return config


def check_choices(overrides: Sequence[str]) -> None:
    """Refuse a list of choices where a run has one, or null: Hydra would merge them, or say so in its own words.

    Raises:
        ConfigError: an override is such a list, or null.
    """
    for override in overrides:
        found = re.fullmatch(r"\+{0,2}(([\w/]+)(?:@([\w.]+))?)=(?:null|~)?", override)
        if found and found[2] in (*GROUPS, *PRESET_GROUPS):
            or_value = f", or set the value {found[3]}=null to have none" if found[3] else ""
            raise ConfigError(f"{override} chooses nothing. Leave it out{or_value}. {suggest('', choices(found[2]))}")
        found = re.fullmatch(r"\+{0,2}(([\w/]+)(?:@[\w.]+)?)=\[(.*)\]", override)
        if found and found[2] in GROUPS and found[2] != "eval":
            raise ConfigError(
                f"{override} is a list, where a run takes one {found[2]}. For a run with each, sweep (-m) over "
                f"{found[1]}={found[3]}; in a sweep's file that is {found[1]}: '{found[3]}'."
            )


def to_experiment(config: DictConfig) -> Experiment:
    """Build the objects that a composed configuration describes; each checks its own values.

    Raises:
        ConfigError: a value is missing or impossible.
    """
    with readable_errors():
        experiment = OmegaConf.to_object(config)
        assert isinstance(experiment, Experiment)
        return experiment


def choices(group: str) -> dict[str, str]:
    """All choices of a group with their one-line descriptions.

    The description is the first comment of the YAML, or the first line of the component's docstring.
    """
    found: dict[str, str] = {}
    for file in sorted((CONF_DIR / group).glob("*.yaml")):
        found[file.stem] = _purpose(file)
    for name, cls in (components(group) if group in GROUPS else {}).items():
        if name not in found and not _is_base_of_yaml(group, name):
            found[name] = (cls.__doc__ or "").strip().split("\n")[0]
    return dict(sorted(found.items()))


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into a `ConfigError` of one or two sentences."""
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_unknown_choice(error)) from error
    except OverrideParseException as error:
        raise ConfigError(
            f"The override {error.override!r} can't be parsed. Write key=value or group=choice."
        ) from error
    except FrozenInstanceError as error:
        key = str(error).rpartition("'")[0].rpartition("'")[2]
        raise ConfigError(f"The key {key!r} doesn't exist, and '+' can't add it: settings are fixed.") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value. Set it: {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_bad_value(error)) from error
    except (ConfigCompositionException, HydraException) as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException):
            raise ConfigError(_bad_value(cause)) from error
        raise ConfigError(_without_search_path(str(error))) from error


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _without_search_path(str(error))
    return f"{group}={choice} is not a choice. {suggest(choice, choices(group))}"


def _bad_value(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key)
    owner = error.object_type
    if is_dataclass(owner) and isinstance(owner, type) and str(error.msg or "").startswith("Key '"):
        group = key.rpartition(".")[0]
        names = [field.name for field in fields(owner)] + ([] if group else list(PRESET_GROUPS))
        if not names:
            return f"The key {key!r} doesn't exist: this choice of {group} has no settings. Choose another {group}."
        return f"The key {key!r} doesn't exist. {suggest(str(error.key), names)}"
    reason = str(error).split("\n")[0]
    return f"{key}: {reason}."


def _without_search_path(message: str) -> str:
    return re.sub(r"\s*Config search path:.*", "", message, flags=re.DOTALL).replace("\n", " ").strip()


def _purpose(file: Path) -> str:
    comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")


def _is_base_of_yaml(group: str, name: str) -> bool:
    """Whether a component is only the schema of YAMLs with names of their own (such as `blocks`)."""
    schema = f"{name}_schema"
    return any(schema in file.read_text(encoding="utf-8") for file in (CONF_DIR / group).glob("*.yaml"))


def _schema(cls: type) -> DictConfig:
    """A class as a schema that overrides may change: OmegaConf makes frozen dataclasses read-only."""
    node = OmegaConf.structured(cls)
    _unlock(node)
    assert isinstance(node, DictConfig)
    return node


def _unlock(node: Any) -> None:
    if isinstance(node, DictConfig):
        node._set_flag("readonly", None)
        if not node._is_none() and not node._is_missing():
            for key in node:
                _unlock(node._get_node(key))


def resolved(config: DictConfig) -> Mapping[str, Any]:
    """A composed configuration as plain values, for records."""
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
