"""From YAML files and overrides to an `Experiment`, with errors a person can act on.

Hydra composes; the dataclasses of the components are the schema, so that unknown keys and wrong types fail
while composing, and impossible values when `OmegaConf.to_object` builds the objects. No `_target_`
anywhere: a saved configuration can't name code to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, ListConfig, OmegaConf, StringNode, open_dict

from linearpatch.choices import CONF_DIR, PRESET_GROUPS, choices
from linearpatch.config_errors import readable_errors
from linearpatch.errors import ConfigError, named_as, suggest
from linearpatch.experiment import Experiment
from linearpatch.overrides import expanded, override
from linearpatch.registry import GROUPS, LIST_GROUPS, choice_of, components

CHOICE_NAME = re.compile(r"\$\{hydra:runtime\.choices\.([\w@./]+)\}")


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
            package = f"{group}.{name}" if group in LIST_GROUPS else None
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
    overrides = expanded(overrides, search_path)
    check_choices(overrides)
    folders = [f"file://{folder}" for folder in search_path]
    more = [override("hydra.searchpath", folders)] if folders else []
    with readable_errors(), initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        config: DictConfig = compose("config", [*overrides, *more], return_hydra_config=True)
        return job_config(config)


def job_config(composed: DictConfig) -> DictConfig:
    """What Hydra composed without its own node; names of choices in texts are filled in.

    The group of an experiment's runs is its name, unless they have another.

    Raises:
        ConfigError: a text interpolates what isn't a text.
    """
    settle_texts(composed)
    composed.group = composed.group or composed.hydra.runtime.choices.get("experiment")
    with open_dict(composed):
        del composed["hydra"]
    return composed


def settle_texts(composed: DictConfig) -> None:
    """Fill in `${hydra:runtime.choices.GROUP}`, which only Hydra's own process knows; look at other interpolations.

    Raises:
        ConfigError: a text interpolates settings as a whole, which would be written into it as a mapping.
    """
    for node in _texts(composed):
        key, text = node._get_full_key(None), node._value()
        for reference in re.findall(r"(?<!\\)\$\{(\w[\w.]*)\}", text):
            target = OmegaConf.select(composed, reference, throw_on_missing=False)
            is_inside = text != f"${{{reference}}}" or isinstance(node, StringNode)
            if is_inside and OmegaConf.is_config(target):
                raise ConfigError(
                    f"{key}={text} would contain all settings of {reference}. For its name write "
                    f"${{hydra:runtime.choices.{reference}}}; for one setting its key, such as ${{num_pruned_layers}}."
                )
        node._set_value(_with_names(key, text, composed.hydra.runtime.choices))


def _with_names(key: str, text: str, names: Mapping[str, Any]) -> str:
    def name(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise ConfigError(f"{key}={text}: {match[1]} is not a group. {suggest(match[1], map(str, names))}")
        return str(names[match[1]])

    return CHOICE_NAME.sub(name, text)


def _texts(node: Any) -> Iterator[Any]:
    """All values with an interpolation, Hydra's own left out."""
    if isinstance(node, DictConfig | ListConfig):
        content = node._content
        if isinstance(content, dict | list):
            for key, item in content.items() if isinstance(content, dict) else enumerate(content):
                if key != "hydra":
                    yield from _texts(item)
    elif isinstance(node._value(), str) and "${" in node._value():
        yield node


def check_choices(overrides: Sequence[str]) -> None:
    """Reject a list of choices where a run has one, or null: Hydra would merge them, or say so in its own words.

    Raises:
        ConfigError: an override is such a list, or null.
    """
    for word in overrides:
        if word.lstrip("+~").startswith("="):
            raise ConfigError(f"The override {word!r} names no setting. Write key=value or group=choice.")
        removed = re.fullmatch(r"~([\w.]+)(?:=.*)?", word)
        if removed and removed[1] not in (*GROUPS, *PRESET_GROUPS):
            raise ConfigError(f"{word}: settings can't be removed. Leave it out, or set {removed[1]}=VALUE.")
        match = re.fullmatch(r"\+{0,2}(([\w/]+)(?:@([\w.]+))?)=(?:null|~)?", word)
        if match and match[2] in (*GROUPS, *PRESET_GROUPS):
            or_value = f", or set the value {match[3]}=null to have none" if match[3] else ""
            raise ConfigError(f"{word} chooses nothing. Leave it out{or_value}. {suggest('', choices(match[2]))}")
        match = re.fullmatch(r"\+{0,2}(([\w/]+)(?:@[\w.]+)?)=\[(.*)\]", word)
        if match and match[2] in GROUPS and match[2] not in LIST_GROUPS:
            raise ConfigError(
                f"{word} is a list, where a run takes one {match[2]}. For a run with each, sweep (-m) over "
                f"{match[1]}={match[3]}; in a sweep's file that is {match[1]}: '{match[3]}'."
            )


def to_experiment(config: DictConfig) -> Experiment:
    """Build the objects that a composed configuration describes; each checks its own values.

    Raises:
        ConfigError: a value is missing or impossible.
    """
    with readable_errors():
        try:
            experiment = OmegaConf.to_object(config)
        except ConfigError:
            _check_each(config)
            raise
        assert isinstance(experiment, Experiment)
        return experiment


def _check_each(node: DictConfig | ListConfig) -> None:
    """Build each component alone, so that errors name its settings where they are: it may be one of several corpora.

    Raises:
        ConfigError: a component rejects its settings.
    """
    content = node._content
    for child in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        if isinstance(child, DictConfig | ListConfig) and not child._is_interpolation():
            _check_each(child)
    key = str(node._get_full_key(None))
    if (choice := choice_of(OmegaConf.get_type(node))) is None:
        return
    group, name = choice
    if group in LIST_GROUPS:
        names = {f"{group}.{name}.": f"{key}."}
    else:
        names = {f"{group}.": f"{key}.", f"{group}=": f"{group}@{key}="} if key != group else {}
    with named_as(names):
        OmegaConf.to_object(node)


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
