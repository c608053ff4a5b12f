"""Methods that choose what is removed: one file each. Their classes are attributes of this package."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """A class by its name, such as `PatchAware`; those of plug-ins, too."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from linearpatch.errors import suggest
    from linearpatch.registry import components

    classes = {cls.__name__: cls for cls in components("pruner").values()}
    if name not in classes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. {suggest(name, classes)}")
    return classes[name]
