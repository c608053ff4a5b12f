"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from linearpatch.errors import StorageError
from linearpatch.storage.temporary import remove_leftovers, temporary_path


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        StorageError: the system rejects.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Can't create the folder {path}: {error.strerror}. Choose another place, or free it."
        ) from error


def check_folder(path: Path) -> None:
    """Reject a place that can't be a folder, without making one.

    Raises:
        StorageError: a file is there, or in place of a folder above.
    """
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    if file is not None:
        raise StorageError(f"Can't create the folder {path}: {file} is a file. Choose another place, or move it.")


def write_atomically(path: Path, content: bytes, *, safely: bool = True) -> None:
    """Write a file so that readers see the old content or the new, and a failure leaves no trace.

    Args:
        path: The file.
        content: Its content.
        safely: Wait until it is on the disk, so that it survives a power cut.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    make_folder(path.parent)
    temporary = temporary_path(path)
    try:
        with _created(temporary) as file:
            file.write(content)
            file.flush()
            if safely:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"Can't write {path} ({len(content):,} bytes): {error.strerror}. Free some space or choose "
            "another folder (cache_dir=… for the cache, output_dir=… for a run), then run again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _created(path: Path) -> BinaryIO:
    """A new file with the permissions that the umask gives, unlike those of `tempfile`."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends; if it fails, the old one stays.

    Raises:
        StorageError: the disk is full, or the place can't be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():  # a crash between the two renames below
        previous.rename(folder)
    remove_leftovers(folder.parent)
    temporary = temporary_path(folder)
    try:
        temporary.mkdir()
        yield temporary
        _apply_umask(temporary)
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        temporary.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise StorageError(
            f"Can't write {folder}: {error}. What was there before is unchanged. Free some space or choose another "
            "folder (output_dir=… for a run, cache_dir=… for the cache), then run again."
        ) from error
    finally:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Give the files of a new folder the permissions that the umask gives; safetensors makes them private."""
    probe = folder / f".{secrets.token_hex(8)}"
    with _created(probe) as file:  # asking for the umask would set it, for all threads
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def open_log(path: Path) -> TextIOWrapper:
    """Open a log to write at its end. A symbolic link is not followed: it could point to any file of the user's.

    Raises:
        StorageError: the place holds something other than a file, or can't be written.
    """
    make_folder(path.parent)
    # A pipe that nobody reads must fail, too, where waiting for a reader would take forever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        check_log(path)
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        check_log(path)
        raise StorageError(f"Can't write the log {path}: {error.strerror}. Choose another output_dir=….") from error
    return open(descriptor, "a", encoding="utf-8")  # noqa: PTH123 (a descriptor)


def check_log(path: Path) -> None:
    """Reject a place for a log that holds something other than a file.

    Raises:
        StorageError: it does.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = f"a symbolic link to {path.readlink()}" if path.is_symlink() else "not a file"
        raise StorageError(
            f"The log {path} is {what}, and logs are written to files only. Remove it, or choose another output_dir=…."
        )
