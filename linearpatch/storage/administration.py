"""Look after the cache: what is in it, what can be removed, what is damaged."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from linearpatch.errors import StorageError, require_choice
from linearpatch.storage.cache import SUFFIX, UNREADABLE, read_entry
from linearpatch.storage.cache_folder import MARKER, MARKER_TEXT, cached_entries, is_marked
from linearpatch.storage.leases import is_held
from linearpatch.storage.temporary import Temporary, temporaries

TEMPORARY = "temporary"


@dataclass(frozen=True)
class Kept:
    """What the cache keeps of one kind.

    Attributes:
        kind: Such as `statistic` or `targets`.
        entries: Their files, or folders of models.
        size: Bytes.
        oldest: When the oldest was written, in seconds since 1970.
        newest: The same of the newest.
    """

    kind: str
    entries: tuple[Path, ...]
    size: int
    oldest: float
    newest: float

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.entries)


def contents(root: Path) -> list[Kept]:
    """What a cache holds, by kind; last what is being written, or was when its process was killed."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    written = [file.path for file in half_written(root)]
    kinds = [(folder.name, list(cached_entries(folder))) for folder in folders]
    return [kept for kind, entries in [*kinds, (TEMPORARY, written)] if (kept := _kept(kind, entries))]


def half_written(root: Path) -> list[Temporary]:
    """What is being written in a cache, or was when its process was killed."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()] if root.is_dir() else []
    return [file for folder in sorted(folders) for file in temporaries(folder)]


def removable(root: Path, kind: str, *, older_than_s: float = 0) -> list[Kept]:
    """Entries that may be removed: of a cache that this package made, and that nobody is working on.

    Args:
        root: The cache.
        kind: Of the entries, or `all`.
        older_than_s: Only those written so many seconds ago.

    Raises:
        ConfigError: there is no such kind.
        StorageError: the folder isn't marked as a cache.
    """
    if not root.exists():
        return []
    if not is_marked(root):
        raise StorageError(
            f"{root} isn't a cache of linearpatch: it holds no {MARKER} with the line that linearpatch writes into it. "
            "Nothing was removed. Name the cache with --dir. If this is a cache that an earlier version made, the next "
            f"run with cache_dir={root} marks it; or create the file {root / MARKER} with these two lines:\n"
            f"{MARKER_TEXT.strip()}"
        )
    entries = contents(root)
    require_choice("kind", kind, [*(kept.kind for kept in entries), "all"])
    limit = time.time() - older_than_s
    leftover = {file.path for file in half_written(root) if file.is_leftover}
    chosen = [
        _kept(kept.kind, [entry for entry in kept.entries if _is_before(entry, limit) and not _is_in_use(entry)])
        if kept.kind != TEMPORARY
        else _kept(TEMPORARY, [entry for entry in kept.entries if entry in leftover and _is_before(entry, limit)])
        for kept in entries
        if kind in (kept.kind, "all")
    ]
    return [kept for kept in chosen if kept]


def remove(entries: Sequence[Kept]) -> tuple[int, int]:
    """Remove entries, but for those that somebody has begun to work on since they were listed.

    Args:
        entries: What `removable` lists.

    Returns:
        How many were removed, and their bytes.

    Raises:
        StorageError: the system doesn't allow it.
    """
    count = size = 0
    for entry in (entry for kept in entries for entry in kept.entries):
        if entry.is_symlink() or not entry.exists() or _is_in_use(entry):
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
    entries = []
    for entry in entries_to_check(root):
        try:
            read_entry(entry)
        except UNREADABLE as error:
            entries.append((entry, str(error)))
        on_step()
    return entries


def entries_to_check(root: Path) -> list[Path]:
    """All entries that carry a checksum."""
    return [entry for kept in contents(root) for entry in kept.entries if entry.suffix == SUFFIX]


def _kept(kind: str, entries: Sequence[Path]) -> Kept | None:
    """What there is of a kind, without entries that another process has just removed."""
    times = {}
    for entry in entries:
        with suppress(FileNotFoundError):
            times[entry] = entry.stat().st_mtime
    if not times:
        return None
    return Kept(kind, tuple(times), sum(map(_size, times)), min(times.values()), max(times.values()))


def _is_before(entry: Path, limit: float) -> bool:
    return entry.exists() and entry.stat().st_mtime <= limit


def _is_in_use(entry: Path) -> bool:
    return is_held(entry.with_suffix(".lease"))


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            status = file.lstat()
            size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return size
