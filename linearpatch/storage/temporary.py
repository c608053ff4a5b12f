"""Files and folders that are being written: their names say who writes them.

So what a killed process left behind is distinguished from work in progress: it is removed once its owner is dead, or,
where that can't be known from here (another machine, another container), once it wasn't written to for long.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

OLD_S = 3600.0  # nobody writes one file for that long without it changing
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # fixed by Linux' ABI

_NAME = re.compile(r"\..*~(?P<machine>[^~]+)~(?P<process>\d{1,10})~[0-9a-f]{8}\.tmp")
# What earlier versions named them in the cache (by Python's tempfile, without an owner) …
_OF_EARLIER_VERSIONS = re.compile(r"\.[0-9a-f]{32}\.(safetensors|json)\.[a-z0-9_]{8}")
# … and what filelock leaves if it is killed in the middle of taking a lease over.
_OF_LEASES = re.compile(r".*\.lease\.(break|restore)\.(?P<process>\d{1,10})\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Temporary:
    """A file or folder that is being written, or was when its owner died.

    Attributes:
        path: Where it is.
        machine: Its owner's; None where the name doesn't say …
        process: … and its process.
    """

    path: Path
    machine: str | None = None
    process: int | None = None

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its owner's process can be looked up here."""
        return self.machine == this_machine()

    @property
    def is_of_the_dead(self) -> bool:
        """Whether its owner is known to be dead."""
        return self.is_of_this_machine and self.process is not None and not is_alive(self.process)

    @property
    def is_leftover(self) -> bool:
        """Whether nobody will finish it, as far as one look shows."""
        return self.is_of_the_dead or time.time() - self.touched > OLD_S

    @property
    def touched(self) -> float:
        """When it, or something in it, was written last, in seconds since 1970."""
        places = [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        return max((_mtime(place) for place in places), default=time.time())

    @property
    def size(self) -> int:
        """Bytes."""
        places = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(_size(place) for place in places if not place.is_dir())

    def remove(self) -> bool:
        """Remove it; whether that worked."""
        try:
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("can't remove %s: %s", self.path, error)
            return False
        return True


def temporary_path(target: Path) -> Path:
    """A new name beside a file or folder, for what will replace it."""
    name = target.name.encode()[:64].decode(errors="ignore")
    return target.with_name(f".{name}~{this_machine()}~{os.getpid()}~{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a name is one that this package gives to what is being written."""
    return any(_named(path.parent, [path.name]))


def temporaries(folder: Path) -> list[Temporary]:
    """What is being written in a folder, or was, by name; without what is below it."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return list(_named(folder, names))


def _named(folder: Path, names: list[str]) -> Iterator[Temporary]:
    for name in names:
        if match := _NAME.fullmatch(name):
            yield Temporary(folder / name, match["machine"], int(match["process"]))
        elif _OF_EARLIER_VERSIONS.fullmatch(name) or _OF_LEASES.fullmatch(name):
            yield Temporary(folder / name)


def remove_leftovers(folder: Path) -> int:
    """Remove what killed processes had begun to write in a folder; how many."""
    return sum(file.is_leftover and file.remove() for file in temporaries(folder))


def this_machine() -> str:
    """The name of this machine, or container, in the names of files: equal names share their processes' numbers."""
    host = socket.gethostname()
    digest = hashlib.sha256(f"{host} {pid_namespace()}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9.-]', '_', host)[:40]}-{digest}"


def pid_namespace() -> int | None:
    """The container that numbers this process, since containers may share a host's name; None: none but the host."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
    return None if namespace == INITIAL_PID_NAMESPACE else namespace


def is_alive(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is someone else's
        pass
    return True


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # it has just been finished
        return time.time()


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
