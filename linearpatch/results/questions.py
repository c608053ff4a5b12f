"""What lies beside `result.json`: what each question gave, and small arrays.

`questions.parquet` has one row for each metric and question (its number in the task, and a hash of its text) and one
column for each stage: the answers to compare stand side by side. `diagnostics.safetensors` holds arrays named
`STAGE/NAME`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Self

import numpy
import pandas
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from linearpatch.errors import StorageError
from linearpatch.storage.files import write_atomically

QUESTIONS = "questions.parquet"
ARRAYS = "diagnostics.safetensors"
INDEX = ("metric", "question", "document")


class Answers:
    """The answers and arrays of a run's stages, those of earlier runs in the same folder included.

    As a context it writes them when the block ends, however it ends; but what is `only_if_whole` only without an error.

    Args:
        folder: Of the run.
        only_if_whole: The answers belong to a record that stays as it is if the block fails.

    Attributes:
        questions: By stage and metric, `[questions]`.
        documents: Hashes of the questions' texts, in the same order.
        arrays: By stage and name.

    Raises:
        StorageError: a file that is there can't be read.
    """

    def __init__(self, folder: Path, *, only_if_whole: bool = False) -> None:
        self._folder, self._only_if_whole = folder, only_if_whole
        self.questions: dict[str, dict[str, NDArray[numpy.float64]]] = {}
        self.documents: dict[str, dict[str, list[str]]] = {}
        self.arrays: dict[str, Tensor] = {}
        file = folder / QUESTIONS
        try:
            if file.exists():
                self._read_questions(pandas.read_parquet(file))
            file = folder / ARRAYS
            if file.exists():
                self.arrays = load(file.read_bytes())
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise StorageError(f"{file} can't be read: {error}. Move it away.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not self._only_if_whole:
            self.write()

    def add(self, stage: str, kind: str, name: str, values: Tensor) -> None:
        """Take what was found at a stage, in place of what was found earlier.

        Args:
            stage: Such as `dense`.
            kind: `questions`, `documents` or `arrays`.
            name: Of the metric or array.
            values: One for each question, or any small array.
        """
        if kind == "questions":
            self.questions.setdefault(stage, {})[name] = values.double().numpy()
            if len(self.documents.get(stage, {}).get(name, values)) != len(values):
                del self.documents[stage][name]  # of other questions
        elif kind == "documents":
            self.documents.setdefault(stage, {})[name] = [f"{value:015x}" for value in values.tolist()]
        else:
            self.arrays[f"{stage}/{name}"] = values.clone()  # two stages may be one model, and share what was found

    def write(self) -> None:
        """Write both files, each whole or not at all; none where there is nothing to write.

        Raises:
            StorageError: the disk is full, or the folder can't be written.
        """
        columns = {
            stage: pandas.concat({metric: self._column(stage, metric) for metric in answers})
            for stage, answers in self.questions.items()
        }
        if columns:
            table = pandas.DataFrame(columns, dtype="float32").rename_axis(list(INDEX)).reset_index()
            table = table.astype({"metric": "category", "question": "int32", "document": "category"})
            content = io.BytesIO()
            table.to_parquet(content, index=False, compression="zstd")
            write_atomically(self._folder / QUESTIONS, content.getvalue())
        if self.arrays:
            write_atomically(self._folder / ARRAYS, save(self.arrays))

    def _read_questions(self, table: pandas.DataFrame) -> None:
        for stage in table.columns.drop(list(INDEX)):
            known = table[table[stage].notna()]
            for metric, rows in known.groupby("metric", observed=True, sort=False):
                values = rows[stage].to_numpy(dtype=numpy.float64)
                self.questions.setdefault(str(stage), {})[str(metric)] = values
                self.documents.setdefault(str(stage), {})[str(metric)] = rows["document"].astype(str).tolist()

    def _column(self, stage: str, metric: str) -> pandas.Series:
        """A stage's answers, by number and hash of the question."""
        values = self.questions[stage][metric]
        documents = self.documents.get(stage, {}).get(metric, [""] * len(values))
        return pandas.Series(values, index=pandas.MultiIndex.from_arrays([range(len(values)), documents]))
