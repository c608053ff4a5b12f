"""Settings that go together and aren't a full grid: this model with these sizes, that one with those."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader  # reads 1e-3 as a number and rejects repeated keys, as in every other YAML

from linearpatch.choices import PRESET_GROUPS
from linearpatch.errors import ConfigError, require_path
from linearpatch.overrides import override
from linearpatch.registry import GROUPS

MOST_BYTES = 4 * 2**20
MOST_DEPTH = 20
MOST_VALUES = 200_000
FORM = "a list of mappings, such as `- {pruner: sleb, num_pruned_layers: 5}`"
PRODUCT = "values"  # key of a mapping that lists the values of a product


def read_combinations(file: str) -> list[dict[str, Any]]:
    """The combinations of a file: a YAML list of mappings.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not file:
        raise ConfigError(f"sweep= names no file. Write sweep=FILE, a YAML file with {FORM}; or leave it out.")
    require_path("sweep", file)
    path = Path(file).expanduser()
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise OSError(f"it has {path.stat().st_size:,} bytes, and a sweep's file up to {MOST_BYTES:,}")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=get_yaml_loader())
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"sweep={file} can't be read: {error}. Name a YAML file with {FORM}.") from error
    except RecursionError as error:
        raise ConfigError(f"sweep={file} is nested too deeply. Write {FORM}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date or number that there isn't
        raise ConfigError(f"sweep={file} isn't YAML: {' '.join(str(error).split())}. Write {FORM}.") from error
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) and entry for entry in content):
        raise ConfigError(f"sweep={file} doesn't hold combinations. Write {FORM}.")
    budget = [MOST_VALUES]
    for number, combination in enumerate(content, start=1):
        _check(combination, f"sweep={file}, combination {number}", budget)
    return content


def _check(value: Any, place: str, budget: list[int], depth: int = 0) -> None:
    """Reject values that no setting has: of other types, in mappings without end, or more than anybody wrote.

    Raises:
        ConfigError: with the place.
    """
    budget[0] -= 1
    if depth > MOST_DEPTH or budget[0] < 0:
        what = f"nested more than {MOST_DEPTH} deep" if depth > MOST_DEPTH else f"more than {MOST_VALUES:,} values"
        raise ConfigError(f"{place}: {what}, as where an anchor (&) holds an alias (*) of itself. Write {FORM}.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key.strip():
                raise ConfigError(f"{place}: the key {key!r} is not the name of a setting. Write {FORM}.")
            _check(item, f"{place}, {key[:60]}" if depth == 0 else place, budget, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, place, budget, depth + 1)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ConfigError(
            f"{place}: {value!r} is a {type(value).__name__}, which no setting takes. Put a text in quotes."
        )
    elif isinstance(value, str) and (bad := next((c for c in value if ord(c) < 32 and c not in "\t\n\r"), None)):
        raise ConfigError(f"{place}: {value!r} holds the control character {bad!r}. Leave it out.")


def as_overrides(combination: Mapping[str, Any]) -> list[str]:
    """A combination as on the command line.

    Values are what YAML says they are: a text is a text, also with commas in it. A product is a mapping with the one
    key `values`; names of choices, which have no commas, may also stand side by side.

    >>> as_overrides({"pruner": "sleb,shortgpt", "seed": {"values": [0, 1]}, "corpus.path": "a,b", "group": None})
    ['pruner=sleb,shortgpt', 'seed=0,1', "corpus.path='a,b'", 'group=null']

    Raises:
        ConfigError: a key isn't a name, or an override can't say a value.
    """
    words = []
    for key, value in combination.items():
        if not isinstance(key, str) or not re.fullmatch(r"[+~]{0,2}[\w./@$-]+", key):
            raise ConfigError(f"{key!r} is not the name of a setting. Write {FORM}.")
        first, *others = (override(key, alternative) for alternative in _alternatives(key, value))
        words.append(",".join([first, *(other.removeprefix(f"{key}=") for other in others)]))
    return words


def _alternatives(key: str, value: Any) -> Sequence[Any]:
    """The values of a product, or the one value."""
    if isinstance(value, Mapping) and set(value) == {PRODUCT}:
        listed = value[PRODUCT]
        if not isinstance(listed, list) or not listed:
            raise ConfigError(f"{key}.{PRODUCT} is {listed!r}. Allowed: a list, such as {{{PRODUCT}: [5, 7]}}.")
        return listed
    is_group = key.lstrip("+").partition("@")[0] in (*GROUPS, *PRESET_GROUPS)
    if is_group and isinstance(value, str) and value.strip():
        return [name.strip() for name in value.split(",")]
    return [value]
