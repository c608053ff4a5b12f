"""Keeps a run's record on disk while it runs."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from linearpatch.errors import LinearPatchError, StorageError
from linearpatch.results.files import read_record, write_record
from linearpatch.results.record import Record, flat
from linearpatch.runtime.console import PlainFormatter
from linearpatch.storage.files import check_log, open_log, write_atomically

log = logging.getLogger(__name__)

LOG_NAME = "run.log"
# What a run of the same folder finds again or adds to; it must not be lost where the run fails before that.
KEPT = ("model", "calibration", "pruning", "patch", "distillation", "metrics", "retained", "checkpoint", "answered")


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
        with _at_info(package_log):
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


@contextmanager
def _at_info(package_log: logging.Logger) -> Iterator[None]:
    """While open, a run's log has all from INFO on; what a program shows elsewhere stays as it set that."""
    level, propagate = package_log.getEffectiveLevel(), package_log.propagate
    if level <= logging.INFO:
        yield
        return
    own_level, elsewhere = package_log.level, _Elsewhere(level)
    package_log.setLevel(logging.INFO)
    package_log.propagate = False
    if propagate:
        package_log.addHandler(elsewhere)
    try:
        yield
    finally:
        package_log.removeHandler(elsewhere)
        package_log.propagate = propagate
        package_log.setLevel(own_level)


class _Elsewhere(logging.Handler):
    """Passes on to the root's handlers what reached them before."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


def _ending(error: BaseException) -> tuple[Literal["failed", "interrupted"], str]:
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


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings in which two configurations differ, in words."""
    before, after = flat(earlier), flat(now)
    keys = [key for key in (*after, *before) if before.get(key) != after.get(key) and not key.startswith("eval.")]
    keys = list(dict.fromkeys(keys))
    shown = ", ".join(f"{key} was {before.get(key)} and is {after.get(key)}" for key in keys[:3])
    more = f", and {len(keys) - 3} settings more differ" if len(keys) > 3 else ""
    return f" ({shown}{more})" if shown else ""
