"""Look after the cache: what is in it, what can go, what is damaged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from linearpatch.cache import SUFFIX, read_entry
from linearpatch.errors import StorageError, require_choice
from linearpatch.leases import is_held

MODELS = "models"  # checkpoints converted once; folders, not entries


@dataclass(frozen=True)
class Kept:
    """What the cache keeps of one kind.

    Attributes:
        kind: Such as `statistic` or `targets`.
        count: Entries.
        size: Bytes.
        oldest: When the oldest was written, in seconds since 1970.
        newest: The same of the newest.
    """

    kind: str
    count: int
    size: int
    oldest: float
    newest: float


def contents(root: Path) -> list[Kept]:
    """What a cache holds, by kind."""
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        entries = _entries(folder)
        if entries:
            times = [entry.stat().st_mtime for entry in entries]
            size = sum(_size(entry) for entry in entries)
            found.append(Kept(folder.name, len(entries), size, min(times), max(times)))
    return found


def remove(root: Path, kind: str, *, older_than_s: float = 0) -> tuple[int, int]:
    """Remove entries that nobody is working on.

    Args:
        root: The cache.
        kind: Of the entries, or `all`.
        older_than_s: Only those written so many seconds ago.

    Returns:
        How many went, and their bytes.

    Raises:
        ConfigError: there is no such kind.
        StorageError: the system refuses.
    """
    kinds = [kept.kind for kept in contents(root)]
    require_choice("kind", kind, [*kinds, "all"])
    limit = time.time() - older_than_s
    count = size = 0
    for chosen in kinds if kind == "all" else [kind]:
        for entry in _entries(root / chosen):
            if entry.stat().st_mtime > limit or is_held(entry.with_suffix(".lease")):
                continue
            bytes_ = _size(entry)
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except OSError as error:
                raise StorageError(f"Can't remove {entry}: {error.strerror}.") from error
            count, size = count + 1, size + bytes_
    return count, size


def damaged(root: Path, on_step: Callable[[], None] = lambda: None) -> list[tuple[Path, str]]:
    """Entries that can't be read or whose checksum is wrong, with the reason; models aren't checked."""
    found = []
    for entry in entries_to_check(root):
        try:
            read_entry(entry)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            found.append((entry, str(error)))
        on_step()
    return found


def entries_to_check(root: Path) -> list[Path]:
    """All entries that carry a checksum."""
    return [entry for folder in sorted(root.glob("*")) for entry in sorted(folder.glob(f"*{SUFFIX}"))]


def _entries(folder: Path) -> list[Path]:
    if folder.name == MODELS:
        return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return list(folder.glob(f"*{SUFFIX}"))


def _size(entry: Path) -> int:
    if entry.is_dir():
        return sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
    return entry.stat().st_size
