"""Settings that go together, which a product can't say: this model with these sizes, that one with those."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from linearpatch.errors import ConfigError

FORM = "a list of mappings, such as `- {pruner: sleb, num_pruned_layers: 5}`"


def read_combinations(file: str) -> list[dict[str, Any]]:
    """The combinations of a file: a YAML list of mappings.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    path = Path(file).expanduser()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"sweep={file} can't be read: {error}. Name a YAML file with {FORM}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"sweep={file} isn't YAML: {' '.join(str(error).split())}. Write {FORM}.") from error
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) and one for one in found):
        raise ConfigError(f"sweep={file} doesn't hold combinations. Write {FORM}.")
    return found


def as_overrides(combination: Mapping[str, Any]) -> list[str]:
    """A combination as on the command line; a text with commas in it is a product of its own.

    >>> as_overrides({"pruner": "sleb,shortgpt", "num_pruned_layers": 5, "eval": ["ppl", "qa"], "tracker.entity": None})
    ['pruner=sleb,shortgpt', 'num_pruned_layers=5', 'eval=[ppl,qa]', 'tracker.entity=null']
    """
    return [f"{key}={_text(value)}" for key, value in combination.items()]


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(item) for item in value) + "]"
    return str(value)
