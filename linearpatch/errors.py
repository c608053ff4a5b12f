"""What can go wrong, as sentences a person can act on.

Every message says what was wrong, the value, what is allowed, and what to do next. The command line
prints the message alone; from Python they are ordinary exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from math import isfinite
from pathlib import Path


class LinearPatchError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(LinearPatchError, ValueError):
    """A setting is unknown, impossible, or contradicts another."""


class ModelError(LinearPatchError):
    """A model can't be loaded or can't be represented after pruning."""


class DataError(LinearPatchError):
    """A corpus is missing, empty, too short, or used for two purposes."""


class NumericsError(LinearPatchError):
    """A statistic, a fit or a loss is not finite."""


class StorageError(LinearPatchError):
    """A file or folder can't be written or doesn't hold what it should."""


@contextmanager
def settings_of(owner: str) -> Iterator[None]:
    """Begin the message of a `ConfigError`, which names a setting, with whose setting that is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{owner}.{error}") from error


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name settings as a function's arguments are named, where the configuration names them otherwise.

    Args:
        names: Of settings, or of groups with a dot at the end (`pruner.`), and what takes their place.
    """
    try:
        yield
    except LinearPatchError as error:
        message = str(error)
        for key, argument in names.items():
            end = "" if key.endswith(".") else r"\b"
            message = re.sub(rf"(?<![\w.]){re.escape(key)}{end}", argument, message)
        error.args = (message,)
        raise


def looked_in(path: str | Path) -> str:
    """Where a path that doesn't exist was looked for, for the end of a clause; nothing of an absolute one."""
    return "" if Path(path).expanduser().is_absolute() else f" (looked in {Path.cwd()})"


def suggest(value: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message: the nearest allowed name, if any, and all allowed names."""
    allowed = sorted(allowed)
    near = get_close_matches(value, allowed, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(allowed)}."


def require_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"{what} is {value!r}. {suggest(value, allowed)}")


def require_range(what: str, value: float, *, low: float, high: float | None = None) -> None:
    """Raise `ConfigError` unless `low <= value` and, where given, `value <= high`."""
    if not value >= low or (high is not None and value > high):  # so that NaN is rejected, too
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{what} is {value}. Allowed: {bounds}.")


MOST_BYTES_OF_NAME, MOST_BYTES_OF_PATH = 255, 4095  # of a file, as systems take them


def require_path(what: str, value: str) -> None:
    """Raise `ConfigError` unless `value` can be the path of a file or folder, whether or not there is one."""
    encoded = value.encode("utf-8", "surrogateescape")
    for size, most, of in (
        (max(map(len, encoded.split(b"/"))), MOST_BYTES_OF_NAME, " a name of"),
        (len(encoded), MOST_BYTES_OF_PATH, ""),
    ):
        if size > most:
            raise ConfigError(f"{what} is {value[:40]!r}…, with{of} {size:,} bytes. Allowed: up to {most:,}.")
    if value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{what} is {value!r}, and there is no such user. Write the whole path.") from error
    if "\0" in value:
        raise ConfigError(f"{what} is {value!r}, which holds a zero byte. Allowed: the path of a file or folder.")


def require_seed(what: str, value: int) -> None:
    """Raise `ConfigError` unless `value` can be the seed of every generator."""
    require_range(what, value, low=0, high=2**63 - 1)


def require_tokenizer(tokenizer: object) -> None:
    """Raise `ConfigError` unless a value is a tokenizer, going by what it can do."""
    if not (callable(tokenizer) and hasattr(tokenizer, "get_vocab")):
        raise ConfigError(
            f"tokenizer is a {type(tokenizer).__name__}. Allowed: a tokenizer of transformers, such as "
            "AutoTokenizer loads."
        )


def check_group(group: str | None) -> None:
    """Reject a label that can't be the name of a file, or that W&B doesn't take.

    Raises:
        ConfigError: it has other characters.
    """
    if group is not None and not re.fullmatch(r"\w[\w .,=+-]{0,127}", group):
        raise ConfigError(
            f"group is {group!r}. Allowed: letters, digits, spaces and . , = + - _ after a letter or digit."
        )


def require_number(what: str, value: object, word: str, *, zero: bool = True) -> None:
    """Raise `ConfigError` unless `value` is `word` or a finite number of at least 0 (or above it, without `zero`)."""
    if value == word:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and isfinite(value) and (value > 0 or (zero and value == 0))):  # type: ignore[arg-type,operator]
        bounds = "of at least 0" if zero else "above 0"
        raise ConfigError(f"{what} is {value!r}. Allowed: {word}, or a finite number {bounds}.")


def require_whole(name: str, value: object) -> None:
    """Raise `ConfigError` unless a value is a whole number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} is {value!r}. Allowed: a whole number, such as 8.")
