"""The data of tasks: local copies in the hub's layout where they exist, the hub otherwise."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy
import torch
from huggingface_hub import constants

from linearpatch.data.hub import local_copy, local_folder
from linearpatch.data.hub_access import hub_answers, offline, without_waiting
from linearpatch.data.rows import read_rows
from linearpatch.errors import ConfigError, DataError
from linearpatch.evaluation.harness.catalogue import Entry
from linearpatch.text import counted

log = logging.getLogger(__name__)

# What the loading of data sets raises where the hub or a file on it can't be had.
UNREACHABLE = (OSError, ValueError, RuntimeError)
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")  # of `datasets`, for files by their names
PROMPT = ("doc_to_text", "doc_to_target", "doc_to_choice")
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Missing:
    """A task whose data can't be had.

    Attributes:
        entry: The task.
        places: Where a local copy would be.
        reason: Why the hub can't help.
        examples_only: Whether it has its questions, and lacks the examples before them.
    """

    entry: Entry
    places: Sequence[str]
    reason: str
    examples_only: bool = False


def load(entry: Entry, datasets_dir: Path | None, num_fewshot: int | None) -> Any | Missing:
    """Load a task with its data, as lm_eval would but for local copies.

    Args:
        entry: The task.
        datasets_dir: Holds `<data set name>/<config>/<split>.jsonl`, or another table (`data.rows.TABLES`).
        num_fewshot: Examples before each question; None takes the task's own number.

    Raises:
        DataError: a local copy can't be read, or lacks what the task reads.
        ConfigError: the task's own code fails.
    """
    config = {**entry.config, **entry.changes}
    local = _local_files(config, datasets_dir, num_fewshot)
    changes: dict[str, Any] = {}
    if local:
        changes = {split: None for split in SPLITS if split in config and config[split] not in local}
        changes |= {"custom_dataset": lambda **_: _read(local), "dataset_kwargs": None}
    try:
        with _seeded(), nullcontext() if local else _reach(config):
            task = entry.load(changes)
    except DataError:
        raise
    except ImportError as error:
        raise ConfigError(_broken(entry, error)) from error
    except Exception as error:
        if local:
            raise DataError(_wrong_rows(entry, config, local, error)) from error
        if not isinstance(error, UNREACHABLE):
            raise ConfigError(_broken(entry, error)) from error
        return _missing(entry, config, datasets_dir, num_fewshot, error)
    _warn_of_nulls(entry, config, task)
    # The rules of lm_eval's own command: a task that says 0 keeps it, and all draw examples with one seed.
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config("num_fewshot", num_fewshot)
    elif own is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    return task


def _reach(config: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What a task may ask of the hub: nothing unless its data is there."""
    if "custom_dataset" in config or not config.get("dataset_path"):
        return nullcontext()  # its own code makes the data
    return without_waiting() if _is_on_hub(config) else offline()


def _is_on_hub(config: Mapping[str, Any]) -> bool:
    """Whether a task's data may come from the hub: it doesn't where the task makes it, or reads local files."""
    path = config.get("dataset_path")
    if "custom_dataset" in config or not path or Path(str(path)).exists():
        return False
    files = str((config.get("dataset_kwargs") or {}).get("data_files", ""))
    return path not in FILE_FORMATS or "://" in files


def _local_files(config: Mapping[str, Any], datasets_dir: Path | None, num_fewshot: int | None) -> dict[str, Path]:
    """The local copy of each split; none unless all that the task needs is there."""
    if datasets_dir is None or not config.get("dataset_path") or "custom_dataset" in config:
        return {}
    named = {config[key] for key in SPLITS if config.get(key)}
    folder = _folder(config, datasets_dir)
    files = {split: file for split in named if (file := local_copy(folder, split))}
    return files if _needed(config, num_fewshot) <= set(files) else {}


def _needed(config: Mapping[str, Any], num_fewshot: int | None) -> set[Any]:
    """The splits without which a task can't run: that of the questions, and that of the examples before them."""
    questions = _questions(config)
    own = config.get("num_fewshot")
    if not (own if num_fewshot is None or own == 0 else num_fewshot):
        return {questions}
    examples = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    return {questions, examples or config.get("training_split") or config.get("validation_split") or questions}


def _questions(config: Mapping[str, Any]) -> Any:
    """The split that holds the questions."""
    return config.get("test_split") or config.get("validation_split")


def _folder(config: Mapping[str, Any], datasets_dir: Path) -> Path:
    return local_folder(datasets_dir, str(config["dataset_path"]), config.get("dataset_name"))


def _read(files: Mapping[str, Path]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(_rows(file)) for split, file in files.items()})


def _rows(file: Path) -> list[dict[str, Any]]:
    """The questions of a local copy, values as they stand there; rows that are null are left out.

    Raises:
        DataError: it can't be read, or holds none.
    """
    rows = read_rows(file)
    questions = [dict(row) for row in rows if any(value is not None for value in row.values())]
    if not questions:
        raise DataError(f"{file} doesn't hold rows: expected an object for each question.")
    if len(questions) < len(rows):
        log.warning("%s: %d of %s are null and left out", file, len(rows) - len(questions), counted(len(rows), "row"))
    for column in {name for row in questions for name, value in row.items() if _is_too_large(value)}:
        for row in questions:  # identifiers, as a rule; as numbers no table takes them
            row[column] = None if row.get(column) is None else str(row[column])
    return questions


def _warn_of_nulls(entry: Entry, config: Mapping[str, Any], task: Any) -> None:
    """Warn of questions in which a column that the prompt names is null; as lm_eval asks them, they say None there."""
    from datasets import Dataset

    prompt = " ".join(str(config.get(part) or "") for part in PROMPT)
    questions = (getattr(task, "dataset", None) or {}).get(_questions(config))
    if not isinstance(questions, Dataset):  # tasks may make their own
        return
    for column in questions.column_names:
        missing = questions.data.column(column).null_count
        if missing and re.search(rf"\b{re.escape(column)}\b", prompt):
            log.warning(
                "task %s: %r is null in %d of %s, and lm_eval's prompt writes None there; leave such rows out",
                entry.name, column, missing, counted(len(questions), "question"),
            )  # fmt: skip


def _is_too_large(value: Any) -> bool:
    """Whether a value is a number of more than 64 bits."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _wrong_rows(entry: Entry, config: Mapping[str, Any], files: Mapping[str, Path], error: Exception) -> str:
    """What is wrong with a local copy: which file, which column."""
    column = error.args[0] if isinstance(error, KeyError) and error.args else None
    undefined = re.match(r"'(\w+)' is undefined", str(error))
    column = undefined[1] if undefined else column
    file = files[str(_questions(config))]
    columns = ", ".join(read_rows(file)[0])
    what = f"has no column {column!r}" if column else f"has rows that don't fit ({type(error).__name__}: {error})"
    return (
        f"{file} {what}. Its columns: {columns}. The task {entry.name} reads rows as the data set "
        f"{config['dataset_path']} has them on the hub."
    )


def _broken(entry: Entry, error: Exception) -> str:
    return (
        f"The task {entry.name} of lm_eval {lm_eval.__version__} can't be loaded: {type(error).__name__}: {error}. "
        "Leave it out, or install what it needs."
    )


def _missing(
    entry: Entry, config: Mapping[str, Any], datasets_dir: Path | None, num_fewshot: int | None, error: Exception
) -> Missing:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if _is_on_hub(config) and not constants.HF_HUB_OFFLINE and not hub_answers():
        reason = "it doesn't respond"
    if not config.get("dataset_path"):
        return Missing(entry, (), reason)
    folder = _folder(config, datasets_dir or Path("<datasets_dir>"))
    needed = sorted(str(split) for split in _needed(config, num_fewshot))
    if datasets_dir is not None:
        needed = [split for split in needed if local_copy(folder, split) is None]
    places = tuple(f"{folder}/{split}.jsonl" for split in needed)
    return Missing(entry, places, reason, examples_only=str(_questions(config)) not in needed)


@contextmanager
def _seeded() -> Iterator[None]:
    """lm_eval's seeds while a task is made (some shuffle choices then); the generators' states before are kept."""
    states = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    random.seed(0)
    numpy.random.seed(1234)
    torch.random.manual_seed(1234)
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
