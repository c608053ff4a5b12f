"""Which weights are these? A hub commit says it; files are hashed once and remembered by size and time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from linearpatch.cache import write_atomically
from linearpatch.errors import ModelError

WEIGHT_FILES = ("*.safetensors",)


def fingerprint_folder(folder: Path, cache_dir: Path) -> str:
    """Hash of a local checkpoint's weights and configuration, 16 hexadecimal digits.

    Raises:
        ModelError: the folder holds no safetensors.
    """
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors. Only safetensors checkpoints are read.")
    digest = hashlib.sha256()
    for file in [folder / "config.json", *files]:
        digest.update(f"{file.name}:{_file_hash(file, cache_dir)}".encode())
    return digest.hexdigest()[:16]


def _file_hash(file: Path, cache_dir: Path) -> str:
    stat = file.stat()
    path = str(file.resolve())
    seen = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memory = cache_dir / "fingerprint" / (hashlib.sha256(path.encode()).hexdigest()[:32] + ".json")
    if memory.is_file():
        try:
            remembered = json.loads(memory.read_text())
        except ValueError:
            remembered = {}
        if remembered.get("file") == seen:
            return str(remembered["sha256"])
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    write_atomically(memory, json.dumps({"file": seen, "sha256": digest}).encode())
    return digest
