"""From the text of a `result.json` to a record, with the reason where it isn't one.

A record comes from a disk that others write to, too. It is checked here once, so that whatever reads it afterwards
(tables, the report, the status of a sweep, the next run in its folder) may rely on its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from linearpatch.results.record import SCHEMA_VERSION, Record
from linearpatch.text import printable

MAX_BYTES = 32 * 2**20  # of a file; the largest records that runs write have less than a tenth

_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
_MAY_BE_EMPTY = ("model", "calibration", "pruning", "patch")


def parse(text: bytes) -> Record:
    """A record from its text.

    Raises:
        ValueError: it isn't JSON or isn't a record of this version; the message says where and why.
    """
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no fields")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(f"its schema version {version} is newer than {SCHEMA_VERSION}")
    return check(_printable(content))


def check(content: Mapping[str, Any]) -> Record:
    """A record from plain values.

    Raises:
        ValueError: they aren't a record of this version.
    """
    for name in _MAY_BE_EMPTY:
        if name in content and content[name] is None:
            raise ValueError(f"{name}: it is null; allowed: a section, which may be empty")
    missing = [name for name in ("schema_version", "status") if name not in content]
    if missing:
        raise ValueError(f"{missing[0]}: Field required")
    present = {name: value for name, value in content.items() if not (name in _MAY_BE_EMPTY and value == {})}
    try:  # as JSON, whose arrays are lists and tuples alike
        record = _RECORD.validate_json(to_json({"environment": {}, **present}))
    except ValidationError as error:
        raise ValueError(reason_of(error)) from error
    _drop_shadows(record)
    return record


def reason_of(error: ValidationError) -> str:
    """The first two faults: where, what, and the value."""
    faults = error.errors(include_url=False, include_context=False)
    texts = []
    for fault in faults[:2]:
        place = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        shown = "" if fault["type"] in ("value_error", "missing") else f" (it is {_short(fault['input'])})"
        texts.append(f"{place}: {what}{shown}" if place else what)
    more = f"; and {len(faults) - 2} more" if len(faults) > 2 else ""
    return "; ".join(texts) + more


def _drop_shadows(value: Any) -> None:
    """Drop what a file holds beside a section's fields where it has the name of a method, which it would hide."""
    if is_dataclass(value):
        known = {field.name for field in fields(value)}
        for name in [name for name in vars(value) if name not in known and hasattr(type(value), name)]:
            del vars(value)[name]
        for name in known:
            _drop_shadows(getattr(value, name))
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _drop_shadows(item)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}…"


def _printable(value: Any) -> Any:
    """Values with control characters as escapes, since terminals obey them; infinite numbers are rejected."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("it holds a number beyond the range of numbers, such as 1e999")
    return value
