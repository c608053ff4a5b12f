"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp

from safetensors import SafetensorError

from linearpatch.errors import StorageError


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        StorageError: the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Can't create the folder {path}: {error.strerror}. Choose another place, or free it."
        ) from error


def check_folder(path: Path) -> None:
    """Refuse a place that can't be a folder, without making one.

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
    temporary = None
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            if safely:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"Can't write {path} ({len(content):,} bytes): {error.strerror}. Free some space or choose "
            "another folder (cache_dir=… for the cache, output_dir=… for a run), then run again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends; if it fails, the old one stays.

    Raises:
        StorageError: the disk is full, or the place can't be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    _remove_leftovers(folder)
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():  # a crash between the two renames below
        previous.rename(folder)
    temporary = Path(mkdtemp(dir=folder.parent, prefix=f"{_temporary_prefix(folder)}{os.getpid()}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
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


def _temporary_prefix(folder: Path) -> str:
    return f".{folder.name}.{platform.node()}."


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed had begun to write."""
    prefix = _temporary_prefix(folder)
    for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):
        owner = leftover.name.removeprefix(prefix).split(".")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is someone else's
        pass
    return True
