"""Text from the user's own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import ClassVar

from linearpatch.data.corpus import Corpus, take_share
from linearpatch.data.documents import Column, Document, has_text
from linearpatch.data.rows import PLAIN, READ, format_of, read_column, read_text
from linearpatch.errors import ConfigError, DataError, looked_in, require_path
from linearpatch.registry import component
from linearpatch.text import counted

NAMED = 5  # skipped files that are named


@component("corpus", "text")
@dataclass(frozen=True)
class TextCorpus(Corpus):
    """A .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, also compressed (.gz), or a folder of them.

    A text file is divided into paragraphs at blank lines; the others hold one document a row. Of a folder, all such
    files are read in the order of their names, subfolders included; hidden and other files are skipped. The purposes
    read disjoint slices of the text, by characters: without distillation, `corpus.calibration=all[:60%]` calibrates
    on twice as much.

    Attributes:
        path: The file or folder.
        column: Column of the text, where files have columns. Chats (lists of `role` and `content`) become text by
            the tokenizer's chat template.
    """

    version: ClassVar[int] = 3  # since then slices are shares of the characters, not of the documents

    name: str = field(default="text", metadata={"identity": False})
    calibration: str = "all[:30%]"
    distillation: str = "all[30%:60%]"
    evaluation: str = "all[60%:]"
    short_text: str = field(default="adapt", metadata={"identity": False})
    path: str = ""
    column: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path("corpus.path", self.path)

    def documents(self, split: str, datasets_dir: Path | None = None) -> Sequence[Document]:
        """The documents of a slice."""
        files = self._files()
        column = Column.joined(map(self._read, files))
        if not any(map(has_text, column.documents)):
            size = sum(file.stat().st_size for file in files)
            raise DataError(f"{self.path} holds no text ({counted(size, 'byte')}). Choose a file with text.")
        if column.remark:
            self.say(f"corpus {self.name}: {column.remark} ({self.path})")
        return take_share(column.documents, split)

    def _files(self) -> list[Path]:
        if not self.path:
            raise ConfigError(f"corpus=text needs a file: add corpus.path=FILE ({READ}).")
        try:
            path = Path(self.path).expanduser()
            if path.is_dir():
                return self._files_below(path)
            if not path.exists():
                raise DataError(f"corpus.path={self.path} doesn't exist{looked_in(self.path)}.")
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"corpus.path={self.path} can't be read: {error}.") from error
        if not path.is_file():
            raise DataError(f"corpus.path={self.path} is neither a file nor a folder. Save its text to a file.")
        return [path]

    def _files_below(self, folder: Path) -> list[Path]:
        files, skipped = text_files(folder)
        names = ", ".join(map(str, skipped[:NAMED])) + (f" and {len(skipped) - NAMED} more" if skipped[NAMED:] else "")
        if not files:
            raise DataError(
                f"corpus.path={self.path} is a folder without a file that is read; it holds {names or 'nothing'}. "
                f"Read are files, not hidden, that end in {READ}."
            )
        if skipped:
            self.say(f"corpus {self.name}: {counted(len(files), 'file')} of {folder} are read, skipped: {names}")
        return files

    def _read(self, file: Path) -> Column:
        if format_of(file) in PLAIN:
            return Column([part for part in read_text(file).split("\n\n") if part.strip()])
        return Column.of(read_column(file, self.column), str(file), self.column)


def text_files(folder: Path) -> tuple[list[Path], Sequence[PurePath]]:
    """The files below a folder that are read, in the order of their names, and what else it holds.

    Raises:
        DataError: a subfolder can't be listed.
    """
    files: list[Path] = []
    skipped: list[PurePath] = []

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} can't be listed: {error.strerror}.") from error

    for where, folders, names in os.walk(folder, onerror=fail):
        place = Path(where)
        for name in list(folders):
            if name.startswith(".") or (place / name).is_symlink():  # links may lead in a circle
                folders.remove(name)
                skipped.append((place / name).relative_to(folder))
        for name in names:
            file = place / name
            is_read = not name.startswith(".") and format_of(file) is not None and file.is_file()
            if is_read:
                files.append(file)
            else:
                skipped.append(file.relative_to(folder))
    return sorted(files), sorted(skipped)
