"""Operators that bridge the interfaces: one file each. Their classes are attributes of this package."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """A class by its name, such as `Refit`; those of plug-ins, too."""
    from linearpatch.registry import class_named

    return class_named("patch", name)


def __dir__() -> list[str]:
    """Its classes, for completion."""
    from linearpatch.registry import components

    return [component.__name__ for component in components("patch").values()]
