"""What killed processes left in the cache or in a sweep's folder: leases and half-written files, without their work.

What a process of this machine left is removed at once. Whether one of another machine lives can only be seen by
watching: what nobody has touched from the beginning of a run to its end is removed then, if that took long enough.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from linearpatch.errors import StorageError
from linearpatch.storage.cache_folder import MODELS, is_marked
from linearpatch.storage.leases import Lease, lease_seconds
from linearpatch.storage.temporary import OLD_S, Temporary, temporaries

log = logging.getLogger(__name__)

LEASE = re.compile(r"[0-9a-f]{32}\.lease")  # of a cache's entry


@contextmanager
def tidied(caches: Collection[Path], folders: Sequence[Path] = ()) -> Iterator[None]:
    """Remove what killed processes left, before a block and after it; what can't be removed stays.

    Args:
        caches: Caches; a folder that isn't marked as one is left alone.
        folders: Others that hold nothing but leases and files of this package, such as a sweep's `.sweeps`.
    """
    began = time.monotonic()
    leases, written = _look(caches, folders)
    try:
        yield
    finally:
        for lease in leases:
            with suppress(StorageError, OSError):
                lease.is_held()
        if time.monotonic() - began >= lease_seconds():
            for temporary, touched in written.items():
                if temporary.path.exists() and temporary.touched == touched:
                    temporary.remove()
        _look(caches, folders)  # what processes left that died meanwhile


def _look(caches: Collection[Path], folders: Sequence[Path]) -> tuple[list[Lease], dict[Temporary, float]]:
    """Remove what can be; the leases and files that another machine may be at, the files with when they changed."""
    kinds = [kind for cache in caches for kind in _kinds(cache)]
    leases = [lease for kind in kinds for lease in _held_leases(kind)]
    leases += [lease for folder in folders for lease in _held_leases(folder, all_are_ours=True)]
    written: dict[Temporary, float] = {}
    for folder in [*kinds, *folders]:
        for temporary in temporaries(folder):
            if temporary.is_leftover:
                temporary.remove()
            elif not temporary.is_of_this_machine:
                written[temporary] = temporary.touched
    return leases, written


def remove_dead_leases(cache: Path) -> None:
    """Remove the leases of a cache whose owners are known to be dead."""
    for kind in _kinds(cache):
        _held_leases(kind)


def _held_leases(folder: Path, *, all_are_ours: bool = False) -> list[Lease]:
    """The leases of a folder whose owners may live; others are removed."""
    held = []
    for path in folder.glob("*.lease"):
        if all_are_ours or folder.name == MODELS or LEASE.fullmatch(path.name):
            with suppress(StorageError, OSError):
                if (lease := Lease(path)).is_held() and not _is_ancient(path):
                    held.append(lease)
    return held


def _kinds(cache: Path) -> list[Path]:
    try:
        if not is_marked(cache):
            return []
        return [cache, *(path for path in cache.iterdir() if path.is_dir() and not path.is_symlink())]
    except OSError:
        return []


def _is_ancient(path: Path) -> bool:
    """Remove a lease that nobody can have refreshed for long, however wrong clocks are."""
    if time.time() - path.stat().st_mtime < OLD_S:
        return False
    path.unlink(missing_ok=True)
    return True
