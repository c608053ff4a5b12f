"""Sizes and times of the files that a configuration names, so that a changed file makes a result outdated."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

MOST_FILES = 10_000  # of a folder, that are looked at


def stamps(value: Any) -> dict[str, list[Any]]:
    """What each file or folder named anywhere in a value looks like.

    Args:
        value: Texts in any nesting of lists and dictionaries; those that name no file are skipped.

    Returns:
        For each text that is a path, `[file, size, time of the last change]` of its files; empty where there are none.
    """
    if isinstance(value, dict):
        return {path: stamp for item in value.values() for path, stamp in stamps(item).items()}
    if isinstance(value, (list, tuple)):
        return {path: stamp for item in value for path, stamp in stamps(item).items()}
    if not isinstance(value, str) or not value:
        return {}
    try:
        path = Path(value).expanduser()
        files = islice(path.rglob("*"), MOST_FILES) if path.is_dir() else [path]
        return {value: sorted([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)}
    except (OSError, RuntimeError, ValueError):  # most texts name no file
        return {}
