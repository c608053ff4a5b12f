"""Numbers and layers as sentences have them, letters that number notes, and text that is only text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from string import ascii_lowercase
from typing import Any

# What moves a cursor, changes a terminal, or reorders the letters around it: control characters but for tabs and ends
# of lines, marks of direction, invisible tags, and halves of pairs, which no encoding holds.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

# Where a word begins; a slash inside a word or an address is none.
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"=,\[({])~?/[^\s'\",\])}/][^\s'\",\])}]*")


def counted(count: float, noun: str) -> str:
    """A number with its noun, one or many.

    >>> counted(1, "run"), counted(2, "entry"), counted(0.5, "GPU"), counted(1_234_567, "token")
    ('1 run', '2 entries', '0.5 GPUs', '1,234,567 tokens')
    """
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,.9g} {noun if count == 1 else many}"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Names with commas, of many the first.

    >>> some_of(["a", "b"]), some_of("abcdefgh")
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def letter(index: int) -> str:
    """Letters in order.

    >>> letter(0), letter(25), letter(26)
    ('a', 'z', 'aa')
    """
    more, last = divmod(index, len(ascii_lowercase))
    return (letter(more - 1) if more else "") + ascii_lowercase[last]


def without_folders(text: str) -> str:
    """A text for readers elsewhere: absolute paths, in which folders name people and machines, as their last part.

    >>> without_folders("corpus.path=/home/ann/notes.txt"), without_folders("[/home/ann/a.txt,b/c.txt]")
    ('corpus.path=notes.txt', '[a.txt,b/c.txt]')
    >>> without_folders("/home/ann/my notes.txt"), without_folders("~/models/my-llama"), without_folders("https://a.b/c")
    ('my notes.txt', 'my-llama', 'https://a.b/c')
    """
    name, equals, value = text.rpartition("=")
    if value.startswith(("/", "~/")) and "," not in value:
        return f"{name}{equals}{PurePath(value).name}"
    return ABSOLUTE_PATH.sub(lambda match: PurePath(match[0]).name, text)


def values_without_folders(value: Any) -> Any:
    """All strings in nested dicts and lists, keys apart, as `without_folders` has them."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, dict):
        return {key: values_without_folders(item) for key, item in value.items()}
    return [values_without_folders(item) for item in value] if isinstance(value, (list, tuple)) else value


def layer_list(layers: Iterable[int]) -> str:
    """Layers as ranges.

    >>> layer_list([11, 13, 12, 20])
    '11-13, 20'
    """
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def removal_list(units: Iterable[int | str]) -> str:
    """Layers as ranges, sublayers by their kind.

    >>> removal_list([4, 3]), removal_list(["11.attention", "5", "12.attention", "4.mlp"])
    ('3-4', '5; attention 11-12; MLP 4')
    """
    kinds: dict[str, list[int]] = {"": [], "attention": [], "mlp": []}
    for unit in units:
        layer, _, part = str(unit).partition(".")
        kinds[part].append(int(layer))
    titles = {"": "", "attention": "attention ", "mlp": "MLP "}
    return "; ".join(f"{titles[part]}{layer_list(layers)}" for part, layers in kinds.items() if layers)


def printable(text: str) -> str:
    r"""Text from elsewhere (records, checkpoints, errors) for a terminal or a file: control characters as escapes.

    >>> print(printable("red \x1b[31m, \u202ereversed\u202c, end."))
    red \x1b[31m, \u202ereversed\u202c, end.
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_values(value: Any) -> Any:
    """All strings in nested dicts and lists, keys included, as `printable` has them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    return [printable_values(item) for item in value] if isinstance(value, (list, tuple)) else value
