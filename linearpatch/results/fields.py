"""The types of a record's fields: what a file may hold, and how values become JSON.

Sections are dataclasses. They are checked when a record is read (`results.parsing`), not when a run makes them. A file
may hold more than is named in them, written by a later version or a plug-in: that is kept, and written again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

MAX_LAYERS = 2_000
LARGEST = 1e100  # of any number: sums, squares and ratios of such are finite, too

CHECKED = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Name = Annotated[str, Field(max_length=1_000)]
Words = Annotated[str, Field(max_length=100_000)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(ge=0, le=LARGEST)]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS)]
StreamPlace = Layer | Annotated[float, Field(ge=0, le=MAX_LAYERS, multiple_of=0.5)]

T = TypeVar("T")


def section_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """A section from its fields and whatever else is to stand beside them; numbers that aren't finite become None."""
    content = to_json({name: plain(value) for name, value in values.items()})  # of Python's values it takes none
    kind: Any = cls
    section: T = _adapter(kind).validate_json(content)
    return section


def plain(value: Any) -> Any:
    """Values of JSON: sections as objects, numbers that aren't finite as null, text that is no Unicode with escapes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # names of files may be no text; a record is
        return value.encode("utf-8", "backslashreplace").decode()
    if is_dataclass(value) and not isinstance(value, type):
        optional = getattr(value, "OPTIONAL", ())
        return {name: plain(item) for name, item in vars(value).items() if not (item is None and name in optional)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
