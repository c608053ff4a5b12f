"""`result.json` in the folder of a run."""

from __future__ import annotations

import stat
from pathlib import Path

from linearpatch.errors import StorageError
from linearpatch.results.parsing import MAX_BYTES, parse
from linearpatch.results.record import Record
from linearpatch.storage.files import write_atomically

FILE_NAME = "result.json"


def read_record(folder: Path) -> Record | None:
    """The record in a folder, or None where there is none.

    Raises:
        StorageError: the file is not a record of this version.
    """
    file = folder / FILE_NAME
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{file} can't be read: {error.strerror}. Move it away.") from error
    try:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes; allowed: {MAX_BYTES:,}")
        return parse(file.read_bytes())
    except (ValueError, OSError) as error:
        raise StorageError(f"{file} is not a run record of this version: {error}. Move it away.") from error


def write_record(record: Record, folder: Path) -> None:
    """Write a record into a folder."""
    write_atomically(folder / FILE_NAME, record.to_json().encode())
