"""Who is working on what: leases that processes and machines on a shared file system respect.

A lease is a small file that its owner refreshes. One whose owner died is taken over: at once where it ran on
this machine, after `LEASE_S` where it ran on another. An owner that stalls for longer than that loses its lease,
so a lease keeps work from being done twice, and is not what keeps files whole; atomic writes are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from linearpatch.errors import StorageError
from linearpatch.storage import make_folder

log = logging.getLogger(__name__)

LEASE_S = 60.0


class Occupied(StorageError):
    """Another process has what can have one owner only."""


@contextmanager
def leased(path: Path, what: str) -> Iterator[None]:
    """Hold a lease, waiting for it where another has it.

    Args:
        path: Its file.
        what: What is done under it, for the log.

    Raises:
        StorageError: the file can't be written.
    """
    lease = _lease(path)
    if not _acquired(lease, timeout=1):
        log.info("waiting for another run that computes the same (%s, %s)", what, _owner(lease))
        _acquired(lease, timeout=-1)
    try:
        yield
    finally:
        lease.release()


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lease that nobody else has.

    Args:
        path: Its file.
        what: What it stands for, for the error.

    Raises:
        Occupied: another process has it.
        StorageError: the file can't be written.
    """
    lease = _lease(path)
    if not _acquired(lease, timeout=0):
        raise Occupied(
            f"{what} is in the works by another process ({_owner(lease)}). Wait for it, or choose another output_dir."
        )
    try:
        yield
    finally:
        lease.release()


def wait_for(path: Path) -> None:
    """Wait until nobody has a lease."""
    while is_held(path):
        time.sleep(1)


def is_held(path: Path) -> bool:
    """Whether a living process has a lease, as far as one look can tell."""
    if not path.exists():
        return False
    lease = _lease(path)
    try:
        lease.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lease.release()
    return False


def _lease(path: Path) -> SoftFileLease:
    make_folder(path.parent)
    return SoftFileLease(path, lease_duration=LEASE_S, poll_interval=0.1)


def _owner(lease: SoftFileLease) -> str:
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "its owner is not known"


def _acquired(lease: SoftFileLease, *, timeout: float) -> bool:
    """Whether a lease could be had within some seconds; -1 waits for it."""
    try:
        lease.acquire(timeout=timeout)
    except Timeout:
        return False
    except OSError as error:
        raise StorageError(
            f"Can't write {lease.lock_file}: {error.strerror}. Choose another place (cache_dir=… for the cache, "
            "output_dir=… for a run), or free some space."
        ) from error
    return True
