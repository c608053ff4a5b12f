"""Text from the user's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas

from linearpatch.data.corpus import Corpus, take_slice
from linearpatch.errors import ConfigError, DataError
from linearpatch.registry import component

TEXT_ENDINGS = (".txt", ".md")
ENDINGS = (*TEXT_ENDINGS, ".jsonl", ".json", ".parquet")


@component("corpus", "text")
@dataclass(frozen=True)
class TextCorpus(Corpus):
    """A .txt, .md, .jsonl, .json or .parquet file, or a folder of them.

    A text file is divided into paragraphs at blank lines; the others hold one document a row. The purposes
    read disjoint slices of the documents.

    Attributes:
        path: The file or folder.
        column: Column of the text in .jsonl, .json and .parquet files.
    """

    name: str = field(default="text", metadata={"identity": False})
    calibration: str = "all[:30%]"
    distillation: str = "all[30%:60%]"
    evaluation: str = "all[60%:]"
    path: str = ""
    column: str = "text"

    def rough_tokens(self) -> int:
        """A third of all, at four bytes a token."""
        return sum(file.stat().st_size for file in self._files()) // 12

    def documents(self, split: str, datasets_dir: Path | None = None) -> list[str]:
        """The documents of a slice."""
        return take_slice([document for file in self._files() for document in self._read(file)], split)

    def _files(self) -> list[Path]:
        if not self.path:
            raise ConfigError(f"corpus=text needs a file: add corpus.path=FILE ({', '.join(ENDINGS)}).")
        path = Path(self.path).expanduser()
        if not path.exists():
            raise DataError(f"corpus.path={self.path} doesn't exist (looked in {Path.cwd()}).")
        return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]

    def _read(self, file: Path) -> list[str]:
        if file.suffix in TEXT_ENDINGS:
            try:
                return [part for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file} can't be read as UTF-8 text: {error}.") from error
        return text_column(file, read_rows(file), self.column)


def read_rows(file: Path) -> pandas.DataFrame:
    """The rows of a .jsonl, .json or .parquet file.

    Raises:
        DataError: the file has another ending or can't be read.
    """
    try:
        if file.suffix == ".parquet":
            return pandas.read_parquet(file)
        if file.suffix in (".json", ".jsonl"):
            return pandas.read_json(file, lines=file.suffix == ".jsonl", dtype=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as {file.suffix[1:]}: {error}.") from error
    raise DataError(f"{file} has an unknown ending. Allowed: {', '.join(ENDINGS)}.")


def text_column(file: Path, rows: pandas.DataFrame, column: str) -> list[str]:
    """One column of a file's rows.

    Raises:
        DataError: there is no such column.
    """
    if column not in rows.columns:
        raise DataError(f"{file} has no column {column!r}. Its columns: {', '.join(map(str, rows.columns))}.")
    return [str(text) for text in rows[column]]
