"""Limits that decide how many layers go: one file each. Their classes are attributes of this package."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """A class by its name, such as `Parameters`; those of plug-ins, too."""
    from linearpatch.registry import class_named

    return class_named("budget", name)
