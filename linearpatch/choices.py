"""What can be chosen, by name, read without importing any of it.

YAML files say what they are in their first comment, components in the docstring after their decorator: so a list, a
completion or the error for a misspelt name comes at once, without PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError, suggest
from linearpatch.registry import GROUPS, declared, name_of

# In a checkout the YAMLs stand at the top, for people; in an installed package they come along inside.
_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"

# Groups whose choices are YAML files alone.
PRESET_GROUPS = ("experiment", "scale", "debug", "hydra/launcher", "hydra/sweeper")

# Names that people will try and that can't work, with the reason.
NOT_SUPPORTED = {
    "model=baichuan2_13b": "Its attention uses ALiBi instead of rotary embeddings, so it can't become a Llama, and "
    "transformers has no model of that kind. Use model=baichuan2_7b, or model=llama2_13b for that size.",
}

SCHEMA = "_schema"  # what a structured config is called after the name of its component

NAME = r"[\w-]+"
CHOICE = re.compile(rf"\+{{0,2}}([\w/]+)(?:@[\w.]+)?=(\[)?({NAME}(?:,{NAME})*)(?(2)\])")


def choices(group: str) -> dict[str, str]:
    """All choices of a group with their one-line descriptions.

    The description is the first comment of the YAML, or the first line of the component's docstring.
    """
    files = sorted((CONF_DIR / group).glob("*.yaml"))
    found = {file.stem: _purpose(file) for file in files}
    texts = [file.read_text(encoding="utf-8") for file in files]
    for name, purpose in (declared(group) if group in GROUPS else {}).items():
        is_base_of_yaml = any(f"{name}_schema" in text for text in texts)  # with a name of its own, such as `blocks`
        if name not in found and not is_base_of_yaml:
            found[name] = purpose
    return dict(sorted(found.items()))


def component_of(group: str, choice: str) -> tuple[str, dict[str, Any]]:
    """The component behind a choice, and the settings that its YAML gives it.

    So a name means the same in Python as on the command line. What a YAML takes from the rest of a configuration
    (`${seed}`) stays as the component has it.

    Raises:
        ConfigError: there is no such choice.
    """
    from omegaconf import OmegaConf  # completion of the command line lists choices, and must be quick

    if choice not in choices(group):
        raise unknown_choice(group, choice)
    file = CONF_DIR / group / f"{choice}.yaml"
    if not file.is_file():  # of a plug-in, which has no YAML
        return choice, {}
    content: Any = OmegaConf.to_container(OmegaConf.load(file))  # to YAML's own reader, 2e-4 is a text
    (schema,) = (entry for entry in content.pop("defaults") if str(entry).endswith(SCHEMA))
    settings = {name: value for name, value in content.items() if not str(value).startswith("${")}
    return schema.removesuffix(SCHEMA), settings


def choice_of(group: str, component: str, settings: Mapping[str, Any]) -> str:
    """The choice that settings of a component are, such as `refit_auto`; of several the one that says most.

    Args:
        group: Of the configuration.
        component: Its name.
        settings: As a record's configuration has them.
    """
    fitting = [
        (len(preset), name == component, name)
        for name, (of_component, preset) in _presets(group).items()
        if of_component == component and all(settings.get(key) == value for key, value in preset.items())
    ]
    return max(fitting)[2] if fitting else component


def choice_made(group: str, component: Any) -> str:
    """The choice that a component is, such as `refit_auto`.

    Args:
        group: Of the configuration.
        component: One of its components, or a wrapper around one.
    """
    inner = getattr(component, "wraps", component)
    return choice_of(group, name_of(inner), asdict(inner))


@cache
def _presets(group: str) -> dict[str, tuple[str, dict[str, Any]]]:
    return {name: component_of(group, name) for name in choices(group)}


def unknown_choice(group: str, choice: str) -> ConfigError:
    """The error for a name that a group doesn't have."""
    if reason := NOT_SUPPORTED.get(f"{group}={choice}"):
        return ConfigError(f"{group}={choice} is not supported. {reason}")
    if group == "model" and Path(choice).is_dir():
        return ConfigError(f"model={choice} is not a choice. For the folder of that name write model=./{choice}")
    return ConfigError(f"{group}={choice} is not a choice. {suggest(choice, choices(group))}")


def check_names(overrides: Sequence[str], folder: str | None = None) -> None:
    """Reject a choice that doesn't exist, before anything is imported that could compose it.

    Where only some values of a sweep don't exist, its plan says so.

    Args:
        overrides: Such as `pruner=sleb`.
        folder: More choices, in folders of the user's.

    Raises:
        ConfigError: there is no such choice.
    """
    for override in overrides:
        parts = CHOICE.fullmatch(override)
        if parts is None or parts[1] not in (*GROUPS, *PRESET_GROUPS) or parts[1].startswith("hydra"):
            continue
        group, names = parts[1], parts[3].split(",")
        known = choices(group)
        unknown = [
            name
            for name in names
            if name not in known
            and name.lower() != "null"
            and not name.endswith("_schema")
            and not (folder and (Path(folder) / group / f"{name}.yaml").is_file())
        ]
        if unknown and (parts[2] or len(unknown) == len(names)):
            raise unknown_choice(group, unknown[0])


def _purpose(file: Path) -> str:
    comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")
