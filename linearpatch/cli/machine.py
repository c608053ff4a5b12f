"""What a machine has and lacks: versions, devices, the cache, data, the W&B account. No model, no network."""

from __future__ import annotations

import netrc
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlparse

import psutil
import torch
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from linearpatch.errors import LinearPatchError
from linearpatch.models.embedded import EmbeddedModel
from linearpatch.runtime.distributed import usable_cores
from linearpatch.storage.administration import contents
from linearpatch.storage.cache import default_cache_dir
from linearpatch.storage.files import write_atomically
from linearpatch.text import counted

SIGNS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
MAIN = ("torch", "transformers", "hydra-core", "lm_eval", "wandb")
LEAST_FREE = 5 * 2**30  # bytes on the cache's disk
GIB = 2**30
EXTRAS = {  # the package that each extra installs
    "mlflow": "mlflow-skinny",
    "ray": "ray",
    "sentencepiece": "sentencepiece",
    "slurm": "submitit",
    "optuna": "optuna",
    "wandb": "wandb-workspaces",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        state: `ok`, `note` (something optional is missing) or `problem`.
        detail: What was found, and what to do about it.
    """

    what: str
    state: str
    detail: str


def examine(datasets_dir: Path | None = None) -> list[Finding]:
    """Look at everything."""
    return [*_packages(), *_devices(), *_cache(), *_data(datasets_dir), *_tracking()]


def findings_table(findings: list[Finding]) -> Table:
    """One row for each thing."""
    table = Table(title="This machine", title_justify="left")
    for column in ("", "", "found"):
        table.add_column(column)
    for finding in findings:
        table.add_row(finding.what, SIGNS[finding.state], escape(finding.detail))
    return table


def _packages() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    wrong: list[str] = []
    packages: list[str] = []
    for requirement in map(Requirement, requires("linearpatch") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            packages.append(f"{requirement.name} {installed}")
        else:
            wrong.append(f"{requirement.name} {installed}, needed {requirement.specifier}")
    if wrong:
        yield Finding("packages", "problem", f"{'; '.join(wrong)}. Run: pip install --upgrade linearpatch")
    else:
        main = [
            name for name in packages if name.split()[0] in ("torch", "transformers", "hydra-core", "lm_eval", "wandb")
        ]
        yield Finding("packages", "ok", f"{', '.join(main)} and {len(packages) - len(main)} more, all as required")
    for extra, package in EXTRAS.items():
        try:
            yield Finding(f"extra {extra}", "ok", f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(f"extra {extra}", "note", f"not installed: pip install 'linearpatch[{extra}]'")


def _devices() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    room = f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB memory free"
    yield Finding("cpu", "ok", f"{counted(usable_cores(), 'core')}, {room}")
    if not torch.cuda.is_available():
        yield Finding("gpu", "note", "none that torch can use; runs use the CPU")
        return
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # another process has it for itself, or it is broken
            yield Finding(f"gpu {index}", "problem", f"{torch.cuda.get_device_name(index)}: {error}")
            continue
        state = "ok" if free > total / 2 else "note"
        name = torch.cuda.get_device_name(index)
        yield Finding(f"gpu {index}", state, f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")


def _cache() -> Iterator[Finding]:
    root = default_cache_dir()
    try:
        write_atomically(root / ".probe", b"")
        (root / ".probe").unlink()
    except LinearPatchError as error:
        yield Finding("cache", "problem", str(error))
        return
    free = shutil.disk_usage(root).free
    kept = contents(root)
    count, size = sum(entry.count for entry in kept), sum(entry.size for entry in kept)
    text = f"{root}: {counted(count, 'entry')}, {size / GIB:.1f} GiB"
    state = "ok" if free > LEAST_FREE else "problem"
    yield Finding("cache", state, f"{text}; {free / GIB:.0f} GiB free" + (" (too little)" if state != "ok" else ""))


def _data(datasets_dir: Path | None) -> Iterator[Finding]:
    try:
        EmbeddedModel().package_file()
        yield Finding("embedded model", "ok", "SmolLM2-135M is installed")
    except LinearPatchError as error:
        yield Finding("embedded model", "note", str(error))
    if datasets_dir is None:
        yield Finding("local data sets", "note", "none: data comes from the hub (LINEARPATCH_DATASETS names a folder)")
    elif not datasets_dir.is_dir():
        yield Finding("local data sets", "problem", f"{datasets_dir} is not a folder")
    else:
        names = sorted(path.name for path in datasets_dir.iterdir() if path.is_dir())
        yield Finding("local data sets", "ok", f"{datasets_dir}: {', '.join(names)}")
    from huggingface_hub import constants, get_token

    offline = (
        "offline by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "used where something isn't local (not tried here)"
    )
    login = "logged in" if get_token() else "not logged in (gated models need: hf auth login)"
    yield Finding("hub", "note" if constants.HF_HUB_OFFLINE else "ok", f"{offline}; {login}")


def _tracking() -> Iterator[Finding]:
    if _has_key():
        yield Finding("W&B", "ok", "a key is there; runs are written offline unless tracker.wandb.mode=online")
    else:
        yield Finding("W&B", "note", "no key; runs are written offline (for tracker.wandb.mode=online: wandb login)")


def _has_key() -> bool:
    """Whether W&B would find a key, in the environment or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
