"""Values as Hydra's overrides: what a person, a file or a program means arrives as that.

Hydra's grammar gives commas, parentheses, quotes, `=`, `#` and many words a meaning. Whoever puts a value into an
override does it with `override`, which quotes what needs it, so that parsing gives the value back.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linearpatch.choices import CONF_DIR
from linearpatch.errors import ConfigError

# Texts that Hydra reads as themselves. Anything else is quoted, also what is only unusual.
PLAIN = re.compile(r"[A-Za-z_][\w-]*(?:[./][\w-]+)*|(?:\.{0,2}/)[\w-]+(?:[./][\w-]+)*", re.ASCII)
KEYWORD = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)
KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # of a mapping
DEEPEST = 20  # levels of lists and mappings: more are a file that contains itself
LARGEST = 10_000  # values


def override(key: str, value: Any, *, literal: bool = False) -> str:
    """An override that sets a key to a value.

    >>> override("corpus.path", "a, b.txt")
    "corpus.path='a, b.txt'"
    >>> override("group", "null"), override("group", None)
    ("group='null'", 'group=null')

    Args:
        key: A setting or a group.
        value: A text, path, number, truth value, None, a dtype or device of torch, or a list or mapping of such.
        literal: Whether `${` in a text is text; otherwise it begins an interpolation, as in any configuration.

    Raises:
        ConfigError: an override can't say it.
    """
    return f"{key}={_element(key, value, literal, 0, [0])}"


def quoted(text: str, *, literal: bool = False) -> str:
    """A text in Hydra's grammar, with quotes where it needs them."""
    if literal:  # OmegaConf's escape of an interpolation, and of backslashes before it
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    if PLAIN.fullmatch(text) and not KEYWORD.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    written: str = QuotedString(text, Quote.single).with_quotes()
    return written


def command(words: Sequence[str], name: str = "run") -> str:
    """A command that repeats a run, or what another command did, as a shell takes it."""
    return shlex.join(["linearpatch", name, *words])


def advice(word: str) -> str:
    """How to write an override that Hydra can't parse, quoted for Hydra and for the shell."""
    key, equals, value = word.partition("=")
    form = "Write key=value or group=choice"
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@$-]+", key, re.ASCII):
        return f"{form}."
    from hydra.core.override_parser.types import Quote, QuotedString

    written = QuotedString(value, Quote.double).with_quotes()
    return f"{form}; a text with other characters in quotes: {shlex.quote(f'{key}={written}')}"


def expanded(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """Overrides of one run in full.

    Folders and hub ids as `with_model_paths` has them. A budget and a number of layers exclude each other, and every
    configuration has a number: with `budget=NAME` it is null, unless it is given, too.

    Args:
        overrides: Of one run.
        folders: Where more choices are; theirs in subfolders keep their meaning.
    """
    full = with_model_paths(overrides, folders)
    budgets = [word for word in full if word.startswith("budget=")]
    if budgets and budgets[-1] != "budget=none" and not any(word.startswith("num_pruned_layers=") for word in full):
        full.append("num_pruned_layers=null")
    return full


def with_model_paths(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """`model=./folder` and `model=org/name` as `model=hub model.path=…`; lists of models, as a sweep has them, stay.

    >>> with_model_paths(["model=org/name", "patch=none,lstsq"])
    ['model=hub', 'model.path=org/name', 'patch=none,lstsq']
    """
    full: list[str] = []
    for word in overrides:
        path = _model_path(word)
        is_choice = path is not None and any(_has_choice(folder, path) for folder in (str(CONF_DIR), *folders))
        if path is None or is_choice:
            full.append(word)
        else:
            full += ["model=hub", override("model.path", path)]
    return full


def _has_choice(folder: str, name: str) -> bool:
    return name[0] not in "./~" and Path(folder, "model", f"{name}.yaml").is_file()


def _model_path(word: str) -> str | None:
    """The folder or hub id that `model=` names in place of a choice."""
    if not word.startswith("model="):
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:  # composing says what is wrong with it
        return None
    return value if isinstance(value, str) and ("/" in value or value in (".", "..")) else None


def _element(key: str, value: Any, literal: bool, depth: int, count: list[int]) -> str:
    count[0] += 1
    if depth > DEEPEST or count[0] > LARGEST:
        raise ConfigError(
            f"{key} holds more than {DEEPEST} levels or {LARGEST:,} values. Write it without anchors that repeat it."
        )
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return quoted(str(value), literal=literal)
    if f"{type(value).__module__}.{type(value).__name__}" in ("torch.dtype", "torch.device"):
        return quoted(str(value).removeprefix("torch."))
    if isinstance(value, list | tuple):
        return f"[{','.join(_element(key, item, literal, depth + 1, count) for item in value)}]"
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not KEY.fullmatch(name) or KEYWORD.fullmatch(name):
                raise ConfigError(
                    f"{key} holds the key {name!r}. Allowed: letters, digits, - and _ after a letter. Set it by its "
                    "full name, or in a YAML file of --config-dir."
                )
        pairs = (f"{name}:{_element(key, item, literal, depth + 1, count)}" for name, item in value.items())
        return f"{{{','.join(pairs)}}}"
    raise ConfigError(
        f"{key} is {value!r}, a {type(value).__name__}. Allowed: texts, numbers, true, false, null, and lists or "
        "mappings of them."
    )
