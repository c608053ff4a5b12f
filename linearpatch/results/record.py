"""The run record, `result.json`: the product of a run. Trackers, tables and reports are views of it."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import platform
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from linearpatch.errors import LinearPatchError, StorageError
from linearpatch.results.sections import MOST_BYTES, SCHEMA_VERSION, Sections, parse
from linearpatch.runtime.console import PlainFormatter
from linearpatch.runtime.memory import high_water
from linearpatch.runtime.progress import tell
from linearpatch.storage.files import check_log, open_log, write_atomically

log = logging.getLogger(__name__)

FILE_NAME = "result.json"
LOG_NAME = "run.log"
# What a run of the same folder finds again or adds to; it must not be lost where the run fails before that.
KEPT = ("model", "calibration", "pruning", "patch", "distillation", "metrics", "retained", "checkpoint", "answered")
PACKAGES = (
    "linearpatch",
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "wandb",
    "safetensors",
)


@dataclass
class Record:
    """Everything a run was asked for, did and found, as `result.json` holds it.

    The nested dictionaries hold plain JSON values. `remark` is what readers should know of how it went; `answered`
    says what was asked for and is there (`Experiment.asked`), so that a run asked for again can tell whether anything
    is left to do.
    """

    run_id: str
    group: str | None
    command: str
    seed: int
    config: dict[str, Any]
    schema_version: int = SCHEMA_VERSION
    status: str = "running"
    error: str | None = None
    remark: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    patch: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    retained: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None
    answered: dict[str, str] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: environment())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step of the run and note the memory it needed at most.

        On a GPU that is the memory allocated during the step; on the CPU the process' high-water mark.
        """
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        log.info("%s …", name)
        tell(name)
        try:
            yield
        finally:
            self.timings_s[name] = round(time.perf_counter() - started, 3)
            self.peak_memory_bytes[name] = torch.cuda.max_memory_allocated() if cuda else high_water()

    def to_json(self) -> str:
        """The record as text; numbers that aren't finite become null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False)


def read_record(folder: Path) -> Record | None:
    """The record in a folder, or None where there is none.

    Raises:
        StorageError: the file is not a record of this version.
    """
    read = read_sections(folder)
    return None if read is None else read[0]


def read_sections(folder: Path) -> tuple[Record, Sections] | None:
    """The record in a folder with its checked sections, or None where there is none.

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
        if status.st_size > MOST_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes; allowed: {MOST_BYTES:,}")
        sections, content = parse(file.read_bytes())
    except (ValueError, OSError) as error:
        raise StorageError(f"{file} is not a run record of this version: {error}. Move it away.") from error
    known = {one.name for one in fields(Record)}
    content = {"environment": {}, **content}
    return Record(**{name: value for name, value in content.items() if name in known}), sections


def write_record(record: Record, folder: Path) -> None:
    """Write a record into a folder."""
    write_atomically(folder / FILE_NAME, record.to_json().encode())


@contextmanager
def recording(record: Record, folder: Path) -> Iterator[bool]:
    """Keep a run's record on disk while it runs, with its configuration and its log beside it.

    The record is written at once with status `running`, and again when the block ends: `completed`,
    `failed` with the reason, or `interrupted`. Metrics of the same run measured earlier are kept.

    A record that is complete already, to which this request only adds, stays as it is until the block has succeeded:
    a request that fails takes nothing from it. Yields whether there is one.

    Raises:
        StorageError: the folder holds another run, or can't be written.
    """
    earlier = read_record(folder)
    if earlier is not None:
        holds_nothing = earlier.status in ("failed", "interrupted") and not earlier.metrics and not earlier.checkpoint
        if earlier.run_id != record.run_id and not holds_nothing:
            raise StorageError(
                f"{folder} holds the run {earlier.run_id}; this one is {record.run_id}"
                f"{_difference(earlier.config, record.config)}. Choose another output_dir, or remove that folder."
            )
        for name in KEPT:
            setattr(record, name, copy.deepcopy(getattr(earlier, name)))
    is_addition = earlier is not None and earlier.status == "completed" and earlier.run_id == record.run_id
    check_log(folder / LOG_NAME)
    if not is_addition:
        _write(record, folder)
    handler = _LogFile(folder / LOG_NAME, encoding="utf-8")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package_log = logging.getLogger("linearpatch")
    package_log.addHandler(handler)
    try:
        yield is_addition
        record.status = "completed"
    except BaseException as error:
        record.status, record.error = _ending(error)
        if not isinstance(error, (LinearPatchError, KeyboardInterrupt)):
            # The traceback goes to the file alone; who reports the error says where it is.
            failure = (log.name, logging.ERROR, __file__, 0, "the run failed", None, sys.exc_info())
            handler.handle(logging.LogRecord(*failure))
            error.add_note(f"The traceback is in {folder / 'run.log'}.")
        raise
    finally:
        if record.status == "completed" or not is_addition:
            _write(record, folder)
        else:
            log.info("%s: this request %s; the record stays as it was: completed", folder, record.status)
        package_log.removeHandler(handler)
        handler.close()


def _ending(error: BaseException) -> tuple[str, str]:
    """The status of a run that an exception ended, and the reason."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", str(error) or "interrupted by the user (Ctrl-C)"
    return "failed", str(error) if isinstance(error, LinearPatchError) else f"{type(error).__name__}: {error}"


def _write(record: Record, folder: Path) -> None:
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(record.config)).encode())
    write_record(record, folder)


class _LogFile(logging.FileHandler):
    def _open(self) -> TextIOWrapper:
        return open_log(Path(self.baseFilename))


def environment() -> dict[str, Any]:
    """Packages, hardware and the commit of the code."""
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"packages": packages, "hardware": hardware, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """Commit of the checkout this code runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys.

    >>> flat({"patch": {"ridge": 0.1}, "seed": 0})
    {'patch.ridge': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings in which two configurations differ, in words."""
    before, after = flat(earlier), flat(now)
    keys = [key for key in (*after, *before) if before.get(key) != after.get(key) and not key.startswith("eval.")]
    keys = list(dict.fromkeys(keys))
    shown = ", ".join(f"{key} was {before.get(key)} and is {after.get(key)}" for key in keys[:3])
    more = f", and {len(keys) - 3} settings more differ" if len(keys) > 3 else ""
    return f" ({shown}{more})" if shown else ""


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # names of files may be no text; a record is
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
