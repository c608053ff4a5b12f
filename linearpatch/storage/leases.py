"""Who is working on what: leases that processes and machines on a shared file system respect.

A lease is a small file that its owner refreshes. One whose owner died is taken over: at once where it ran on
this machine; where it ran on another, after nobody has refreshed it for `lease_seconds()` while we watched. The age
of the file says nothing there, since the clocks of machines differ. An owner that stalls for longer than that loses
its lease, so a lease keeps work from being done twice, and is not what keeps files whole; atomic writes are.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from linearpatch.errors import ConfigError, StorageError
from linearpatch.storage.files import make_folder
from linearpatch.storage.temporary import pid_namespace

log = logging.getLogger(__name__)

LEASE_S = 60.0
REFRESHES = 12  # in the time after which a lease is taken over
SILENT_REFRESHES = 3  # so many missed ones speak for a dead owner where something else does, too
VARIABLE = "LINEARPATCH_LEASE_S"


class Occupied(StorageError):
    """Another process has what can have one owner only."""


def lease_seconds() -> float:
    """Seconds after which a lease of another machine that nobody refreshes is taken over.

    Raises:
        ConfigError: the environment variable for it is not a number above 0.
    """
    text = os.environ.get(VARIABLE) or str(LEASE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not (isfinite(seconds) and seconds > 0):
        raise ConfigError(f"{VARIABLE} is {text!r}. Allowed: a number of seconds above 0; unset it for {LEASE_S:g}.")
    return seconds


class Lease:
    """A lease from the point of view of a process that owns it, waits for it, or watches it.

    Whether the owner on another machine lives can only be seen by watching for as long as it may take to refresh
    the lease: whoever watches keeps one object, and asks it again and again.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path, lease_seconds())
        self._first = self._seen = self._stamp()
        self._since = time.monotonic()

    @property
    def owner(self) -> str:
        """Who has it, in words."""
        owner = self._lock.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "unknown owner"

    @property
    def is_local(self) -> bool:
        """Whether its owner's process can be looked up here; where that isn't sure, it can't."""
        owner = self._lock.owner
        namespace = pid_namespace()
        here = socket.gethostname() + ("" if namespace is None else f"?pidns-{namespace:x}")  # as filelock writes it
        return owner is not None and owner.hostname == here

    @property
    def was_refreshed(self) -> bool:
        """Whether its owner has given a sign of life since this object watches."""
        return self._stamp() not in (None, self._first)

    @property
    def seems_abandoned(self) -> bool:
        """Whether it is old by this machine's clock, which may differ from others', so that it is worth watching."""
        stamp = self._stamp()
        return stamp is not None and not self.is_local and time.time() - stamp[0] / 1e9 > lease_seconds()

    def acquire(self, timeout: float) -> bool:
        """Take it, from a dead owner, too; whether that worked within some seconds (-1 waits for as long as it takes).

        Raises:
            StorageError: the file can't be written.
        """
        make_folder(self.path.parent)
        if self.path.is_dir():
            raise StorageError(f"{self.path} is a folder where a lock file should be. Move it away.")
        try:
            return self._acquire(timeout)
        except OSError as error:
            raise StorageError(
                f"Can't write {self.path}: {error.strerror}. Choose another place (cache_dir=… for the cache, "
                "output_dir=… for a run), or free some space."
            ) from error

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def is_held(self) -> bool:
        """Whether a process has it that lives, for all that has been seen of it. A lease without one is removed."""
        if self._stamp() is None:
            return False
        try:
            if not self._acquire(0):
                return True
        except OSError:  # it is in a folder that we can only read
            return self._unchanged_for() < lease_seconds()
        self._lock.release()
        return False

    def is_alive(self) -> bool:
        """Watch it until its owner gives a sign of life; False where it is free, or some are due and there is none.

        That is less than it takes to take the lease over: ask where something else speaks for a dead owner, too.
        """
        seconds = SILENT_REFRESHES * lease_seconds() / REFRESHES
        until = time.monotonic() + seconds
        while self.is_held():
            if self.is_local or self.was_refreshed:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(min(0.5, seconds / 20))
        return False

    def _acquire(self, timeout: float) -> bool:
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except LeaseSettingsMismatch:  # its owner, maybe of another version, has promised another pace
            owner = self._lock.owner
            if owner is not None and owner.lease_duration:
                self._lock = _lock(self.path, owner.lease_duration)
            return timeout < 0 and self._acquire(timeout)
        return True

    def _stamp(self) -> tuple[int, int, int] | None:
        """What changes whenever it is refreshed or changes hands; None where there is none."""
        try:
            # Opened, since that is when network file systems ask the server.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:  # it can't be read
            return (0, 0, 0)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return status.st_mtime_ns, status.st_ino, status.st_ctime_ns

    def _unchanged_for(self) -> float:
        now, stamp = time.monotonic(), self._stamp()
        if stamp != self._seen:
            self._seen, self._since = stamp, now
        return now - self._since


@contextmanager
def leased(path: Path, what: str) -> Iterator[None]:
    """Hold a lease, waiting for it where another has it.

    Args:
        path: Its file.
        what: What is done under it, for the log.

    Raises:
        StorageError: the file can't be written.
    """
    lease = Lease(path)
    if not lease.acquire(timeout=1):
        log.info("waiting for another process to compute %s (%s)", what, lease.owner)
        lease.acquire(timeout=-1)
    try:
        yield
    finally:
        lease.release()


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lease that nobody else has. One of another machine is watched until it is clear whether its owner lives.

    Args:
        path: Its file.
        what: What it stands for, for the error.

    Raises:
        Occupied: another process has it.
        StorageError: the file can't be written.
    """
    lease = Lease(path)
    logged = False
    while not lease.acquire(timeout=0.2):
        if lease.is_local or lease.was_refreshed:
            raise Occupied(f"{what} is used by another run ({lease.owner}). Wait for it, or choose another output_dir.")
        if not logged:
            log.info(
                "%s was used by %s; waiting up to %.0f s for its heartbeat", what, lease.owner, lease_seconds() + 1
            )
            logged = True
    try:
        yield
    finally:
        lease.release()


def wait_for(path: Path) -> None:
    """Wait until no living process has a lease."""
    lease = Lease(path)
    while lease.is_held():
        time.sleep(min(1.0, lease_seconds() / REFRESHES))


def is_held(path: Path) -> bool:
    """Whether a process has a lease, as far as one look shows: one on another machine may have died."""
    return path.exists() and Lease(path).is_held()


def _lock(path: Path, seconds: float) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=seconds, heartbeat_interval=seconds / REFRESHES, poll_interval=0.1)
