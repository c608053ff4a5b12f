"""The classes that the Python API page lists: each component of a group, so that a new one needs no line there."""

from __future__ import annotations

import re

from linearpatch.registry import components

# Such as `<!-- classes: pruner -->`, in docs/api.md.
CLASSES = re.compile(r"^<!-- classes: (\w+) -->$", re.MULTILINE)


def with_classes(markdown: str) -> str:
    """A page with a directive of mkdocstrings for each component of the groups that it asks for."""
    return CLASSES.sub(lambda match: "\n\n".join(f"::: {name}" for name in class_names(match[1])), markdown)


def class_names(group: str) -> list[str]:
    """Full names of a group's classes, those of other packages left out."""
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in components(group).values()}
    return sorted(name for name in classes if name.startswith("linearpatch."))
