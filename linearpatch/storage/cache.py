"""Nothing is computed twice: a content-addressed store of tensors and small facts.

An entry is one safetensors file named by the hash of its key; the key (what was computed, from which
weights and tokens, with which settings and algorithm version) is written inside, with a checksum of the
rest. Entries are written to a temporary file and renamed, so that none is ever half there; jobs that
need the same entry wait for the one that computes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from linearpatch.errors import StorageError, require_path
from linearpatch.storage.cache_folder import mark_cache
from linearpatch.storage.files import write_atomically
from linearpatch.storage.leases import leased

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError)  # what a damaged entry raises


def default_cache_dir() -> Path:
    """`LINEARPATCH_CACHE` where set, else a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    named = os.environ.get("LINEARPATCH_CACHE") or ""
    require_path("The environment variable LINEARPATCH_CACHE", named)
    return Path(named or Path(base) / "linearpatch")


@dataclass(frozen=True)
class Entry:
    """What was computed: tensors by name, and facts that JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Cache:
    """Entries on disk under a folder, and those of this process in memory.

    Args:
        root: The folder; None keeps entries in memory only.
        since: Entries written before (seconds since 1970) count as missing, so that they are recomputed.
    """

    def __init__(self, root: Path | None = None, *, since: float | None = None) -> None:
        self.root = root
        self._since = since
        self._memory: dict[tuple[str, str], Entry] = {}

    def get(self, kind: str, key: Mapping[str, Any], compute: Callable[[], Entry]) -> Entry:
        """Return the entry of a key; compute and store it if there is none, or none that can be read.

        Args:
            kind: Folder of the entry, such as `statistic`.
            key: All that the result depends on, as JSON values.
            compute: Called at most once; what it raises is passed on and nothing is stored.

        Raises:
            StorageError: the entry can't be written.
        """
        with self.locked(kind, key):
            entry = self.find(kind, key)
            if entry is None:
                entry = compute()
                self.put(kind, key, entry)
        return entry

    def find(self, kind: str, key: Mapping[str, Any], *, remember: bool = True) -> Entry | None:
        """Return the entry of a key, or None where there is none or it is damaged.

        Args:
            kind: Folder of the entry.
            key: All that the result depends on.
            remember: Keep it in memory; no for large ones.
        """
        digest = digest_of(key)
        if (kind, digest) in self._memory or self.root is None:
            return self._memory.get((kind, digest))
        path = self._path(kind, digest)
        if not self._is_there(path):
            return None
        try:
            entry = read_entry(path, canonical(key))
        except UNREADABLE as error:
            log.warning("cache entry %s is damaged (%s); it is recomputed", path, error)
            return None
        if remember:
            self._memory[kind, digest] = entry
        return entry

    def put(self, kind: str, key: Mapping[str, Any], entry: Entry, *, remember: bool = True) -> None:
        """Store an entry; it appears whole or not at all.

        Args:
            kind: Folder of the entry.
            key: All that the result depends on.
            entry: What was computed.
            remember: Keep it in memory as well; no for large ones (without a folder memory is all there is).
        """
        digest = digest_of(key)
        if remember or self.root is None:
            self._memory[kind, digest] = entry
        if self.root is None:
            return
        tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()})
        facts = json.dumps(entry.facts)
        metadata = {"key": canonical(key), "facts": facts, "sha256": _checksum(tensors, facts)}
        mark_cache(self.root)
        path = self._path(kind, digest)
        _move_folder_aside(path)
        write_atomically(path, save(tensors, metadata))

    def holds(self, kind: str, key: Mapping[str, Any]) -> bool:
        """Whether there is an entry of a key, as far as that is known without reading it."""
        digest = digest_of(key)
        return (kind, digest) in self._memory or (self.root is not None and self._is_there(self._path(kind, digest)))

    def forget(self) -> None:
        """Drop what is in memory and on disk, too; the next call reads it from there."""
        if self.root is not None:
            self._memory.clear()

    def remove(self, kind: str, key: Mapping[str, Any]) -> None:
        """Forget an entry that isn't needed any more."""
        digest = digest_of(key)
        self._memory.pop((kind, digest), None)
        if self.root is not None:
            with suppress(OSError):  # a folder in its place, or a cache that can only be read
                self._path(kind, digest).unlink()

    @contextmanager
    def locked(self, kind: str, key: Mapping[str, Any]) -> Iterator[None]:
        """Hold an entry's lease; wait where another run has it."""
        if self.root is None:
            yield
            return
        mark_cache(self.root)
        with leased(self._path(kind, digest_of(key)).with_suffix(".lease"), kind):
            yield

    def _is_there(self, path: Path) -> bool:
        try:
            written = path.stat().st_mtime
        except OSError:  # there is none, or its folder can't be read
            return False
        return self._since is None or written >= self._since

    def _path(self, kind: str, digest: str) -> Path:
        assert self.root is not None
        return self.root / kind / f"{digest}{SUFFIX}"


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(key: Mapping[str, Any]) -> str:
    """Name of a key's entry: 32 hexadecimal digits."""
    return hashlib.sha256(canonical(key).encode()).hexdigest()[:32]


def read_entry(path: Path, key: str | None = None) -> Entry:
    """Read an entry's file and check it.

    Args:
        path: The file.
        key: The key that it must hold; None takes any.

    Raises:
        UNREADABLE: it is damaged, or holds another key.
    """
    if not path.is_file():
        raise ValueError("it is not a file")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if key is not None and metadata["key"] != key:
        raise ValueError("it was computed with other settings")
    if _checksum(tensors, metadata["facts"]) != metadata["sha256"]:
        raise ValueError("its checksum doesn't match")
    return Entry(tensors, json.loads(metadata["facts"]))


def _move_folder_aside(path: Path) -> None:
    """Move a folder aside that stands in the place of an entry. Nobody here made it, so it isn't removed."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{path.stem}.moved-{secrets.token_hex(4)}")
        try:
            path.rename(aside)
        except OSError as error:
            raise StorageError(f"Can't move the folder {path}, in place of a cache entry: {error.strerror}.") from error
        log.warning("the folder %s stood in place of a cache entry; it is now %s", path, aside.name)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, as safetensors wants it; one may stand under several names."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(save({name: tensors[name]}))
    return digest.hexdigest()
