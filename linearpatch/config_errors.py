"""What Hydra and OmegaConf raise, as sentences with the key, its value, what is allowed and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, is_dataclass

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from linearpatch.choices import PRESET_GROUPS, choices, unknown_choice
from linearpatch.errors import ConfigError, suggest
from linearpatch.overrides import advice
from linearpatch.registry import GROUPS, LIST_GROUPS, choice_of, components, setting_names

CONVERSION = re.compile(  # OmegaConf's words
    r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)"
)
ALLOWED_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false", "Boolean": "true or false"}


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into a `ConfigError` of one or two sentences."""
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_unknown_choice(error)) from error
    except OverrideParseException as error:
        raise ConfigError(f"The override {error.override!r} can't be parsed. {advice(error.override)}") from error
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
        if ambiguous := re.search(r"Ambiguous value for argument '(.*?)'\n", str(error), re.DOTALL):
            raise ConfigError(
                f"{ambiguous[1]} has a comma. For a run with each value add -m (in Python: linearpatch.run_sweep). "
                f"{advice(ambiguous[1])}"
            ) from error
        raise ConfigError(_without_search_path(str(error))) from error


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _without_search_path(str(error))
    return str(unknown_choice(group, choice))


def _bad_value(error: OmegaConfBaseException) -> str:
    key = error.full_key or str(error.key)
    owner = error.object_type
    if is_dataclass(owner) and isinstance(owner, type) and str(error.msg or "").startswith("Key '"):
        group = key.rpartition(".")[0]
        names = [setting.name for setting in fields(owner)] + ([] if group else list(PRESET_GROUPS))
        if not names:
            return f"The key {key!r} doesn't exist: this choice of {group} has no settings. Choose another {group}."
        chosen = choice_of(owner)
        of = f" with {group}={chosen[1]}" if chosen and group in GROUPS and chosen[1] in choices(group) else ""
        others = [name for name in components(group) if str(error.key) in setting_names(group, name)] if of else []
        if others:
            having = " or ".join(f"{group}={name}" for name in others)
            return f"The key {key!r} doesn't exist{of}. It is a setting of {having}: add that choice."
        return f"The key {key!r} doesn't exist{of}. {suggest(str(error.key), names)}"
    reason = str(error).split("\n")[0]
    if reason.endswith("is not in struct"):
        in_list = key.partition(".")[0] in LIST_GROUPS
        return _setting_of_none_chosen(*key.split(".")[:2]) if in_list else _unknown_entry(key, error)
    if several := re.match(r"Value '([^']+,[^']+)' of type 'str' could not be converted", reason):
        return f"{key}: {reason}. For a run with each, write {key}: {{values: [{several[1]}]}} in the sweep's file."
    if reason == "Interpolation to parent node detected":
        return (
            f"{key} takes what it is a part of. Choose another {key.partition('.')[0]}: this one takes in the run's "
            "own, and is for one purpose, as in corpus@calibration.corpus=broad."
        )
    if reason.endswith("is not a ListConfig, list or tuple."):
        return f"{key} takes a list. Write it in brackets, also of one: {key}=[…]."
    if converted := CONVERSION.match(reason):
        return f"{key} is {converted[1]!r}. Allowed: {ALLOWED_TYPES.get(converted[2], converted[2])}."
    return f"{key}: {reason}."


def _unknown_entry(key: str, error: OmegaConfBaseException) -> str:
    """Why a key isn't there in what is no component, such as the parts of a mixture or a corpus that isn't chosen."""
    owner = key.rpartition(".")[0]
    parent = error.parent_node
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) and parent else []
    if not names:
        advice = f"Choose one: corpus@{owner}=NAME." if owner.endswith("corpus") else ""
        return f"The key {key!r} doesn't exist: nothing is chosen for {owner}. {advice}".rstrip()
    return f"The key {key!r} doesn't exist. {suggest(str(error.key), names)}"


def _setting_of_none_chosen(group: str, name: str) -> str:
    """Why `GROUP.NAME` isn't there, in a group of which a run takes any number of choices."""
    known = choices(group)
    if name in known:
        return f"{group}.{name} has no settings, since {group}={name} isn't chosen. Add it: '{group}=[…,{name}]'."
    owners = [owner for owner in components(group) if name in setting_names(group, owner)]
    if owners:
        forms = " or ".join(f"{group}.{owner}.{name}=…" for owner in owners)
        return f"The key '{group}.{name}' doesn't exist: settings are below the name of their {group}. Write {forms}"
    return f"The key '{group}.{name}' doesn't exist. {suggest(name, known)}"


def _without_search_path(message: str) -> str:
    return re.sub(r"\s*Config search path:.*", "", message, flags=re.DOTALL).replace("\n", " ").strip()
