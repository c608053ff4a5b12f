"""Which weights are these?

On disk a hub commit says it; files are hashed once and remembered until they change. In memory a sample of
every parameter says it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearpatch.errors import ModelError, StorageError
from linearpatch.models.offload import read_parameter
from linearpatch.models.quantised import is_quantised
from linearpatch.storage.cache_folder import mark_cache
from linearpatch.storage.files import write_atomically

log = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors",)
SAMPLE = 256  # values of each parameter


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
        digest.update(f"{file.name}:{file_hash(file, cache_dir)}".encode())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of all that turns text into tokens: equal hashes give equal tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    flags = {flag: getattr(tokenizer, flag, None) for flag in ("add_bos_token", "add_eos_token")}
    parts = [type(tokenizer).__name__, rules, repr(tokenizer.special_tokens_map), repr(flags)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def file_hash(file: Path, cache_dir: Path) -> str:
    """SHA-256 of a file, remembered for as long as the file isn't written to.

    Size and modification time can be set by anyone who changes a file; the time of the last change that the file
    system keeps (ctime) can't.
    """
    stat = file.stat()
    path = str(file.resolve())
    seen = {"path": path, "size": stat.st_size, "inode": stat.st_ino, "ctime_ns": stat.st_ctime_ns}
    memory = cache_dir / "fingerprint" / (hashlib.sha256(path.encode()).hexdigest()[:32] + ".json")
    if digest := _remembered(memory, seen):
        return digest
    digest = sha256_of(file)
    try:
        mark_cache(cache_dir)
        write_atomically(memory, json.dumps({"file": seen, "sha256": digest}).encode())
    except StorageError as error:  # a cache that can only be read, or a full one: the next time it is hashed again
        log.debug("%s", error)
    return digest


def sha256_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _remembered(memory: Path, seen: Mapping[str, Any]) -> str | None:
    """What is remembered of a file as it is now; None where that is nothing, or can't be read."""
    try:
        remembered = json.loads(memory.read_bytes()) if memory.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(remembered, dict) or remembered.get("file") != seen:
        return None
    digest = remembered.get("sha256")
    return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


def weights_hash(model: nn.Module) -> str:
    """Identity of the weights in memory, 16 hexadecimal digits: names, shapes and a sample of every parameter.

    Values are compared as bfloat16, so that a checkpoint is the same in fp32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for module_name, module in model.named_modules():
        named = dict(module.named_parameters(recurse=False))
        if is_quantised(module):  # some keep their codes in buffers
            named |= {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.numel()}
        for name, parameter in named.items():
            digest.update(f"{module_name}.{name}{tuple(parameter.shape)}".encode())
            values = (read_parameter(module, name) if parameter.is_meta else parameter).detach().flatten()
            sample = values[:: max(1, values.numel() // SAMPLE)][:SAMPLE]
            digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def parameter_hash(modules: Sequence[nn.Module]) -> str:
    """Identity of fitted patches: a hash of all their parameters, in order."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().to(torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
