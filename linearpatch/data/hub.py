"""Text from a data set of the Hugging Face hub, or from a local copy in the hub's layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.data.corpus import Corpus, parse_split, take_slice
from linearpatch.data.documents import Column, Document
from linearpatch.data.hub_access import without_waiting
from linearpatch.data.rows import COMPRESSED, TABLES, no_column, read_column
from linearpatch.errors import DataError
from linearpatch.registry import component


@component("corpus", "hub")
@dataclass(frozen=True)
class HubCorpus(Corpus):
    """A data set of the hub in a form that needs no script.

    With a `datasets_dir`, `<datasets_dir>/<data set name>/<config>/<split>.jsonl` is read instead wherever it
    exists, or .parquet, .json, .csv or .tsv, also compressed (.gz).

    Attributes:
        path: Owner and name on the hub.
        config: Configuration of the data set; null where it has one only.
        column: Column that holds the text. Chats (lists of `role` and `content`) become text by the tokenizer's chat
            template.
        data_files: Files of each split, for data sets too large to load whole.
        revision: Commit, tag or branch; pin it to make a run repeatable.
        max_documents: Read so many rows from the start, streaming; null reads all.
    """

    path: str = ""
    config: str | None = None
    column: str = "text"
    data_files: dict[str, str] = field(default_factory=dict)
    revision: str | None = None
    max_documents: int | None = None

    def documents(self, split: str, datasets_dir: Path | None = None) -> Sequence[Document]:
        """The rows of a split."""
        name, _, _ = parse_split(split)
        local = self.local_file(name, datasets_dir)
        values = read_column(local, self.column) if local else self._from_hub(name, datasets_dir)
        source = str(local) if local else f"{self.path}, {name}"
        column = Column.of(values, source, self.column)
        if column.remark:
            self.say(f"corpus {self.name}: {column.remark} ({source})")
        return take_slice(column.documents, split)

    def local_file(self, split: str, datasets_dir: Path | None) -> Path | None:
        """The local copy of a split, if there is one."""
        return None if datasets_dir is None else local_copy(local_folder(datasets_dir, self.path, self.config), split)

    def _from_hub(self, split: str, datasets_dir: Path | None) -> list[Any]:
        """The text column of a split."""
        from datasets import load_dataset

        settings: dict[str, Any] = {"split": split, "revision": self.revision}
        if self.data_files:
            settings |= {"data_files": dict(self.data_files), "verification_mode": "no_checks"}
        try:
            with without_waiting():
                rows = load_dataset(self.path, self.config, streaming=self.max_documents is not None, **settings)
                if rows.column_names and self.column not in rows.column_names:
                    raise DataError(no_column(f"corpus {self.name}: {self.path}", self.column, rows.column_names))
                texts = rows.select_columns([self.column]) if rows.column_names else rows
                return [row.get(self.column) for row in itertools.islice(texts, self.max_documents)]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"corpus {self.name}: can't load {self.path} ({self.config or 'default'}, {split}) from the hub: "
                f"{str(error).splitlines()[0]}. {self._way_out(split, datasets_dir)}"
            ) from error

    def _way_out(self, split: str, datasets_dir: Path | None) -> str:
        """What to do where the hub can't be reached."""
        file = local_folder(Path(), self.path, self.config) / f"{split}.jsonl"
        if datasets_dir is None:
            return (
                f"Offline, set datasets_dir=FOLDER (or LINEARPATCH_DATASETS) to a folder with {file}, or choose a "
                "corpus that is at hand, such as pydoc."
            )
        there = datasets_dir / file.parts[0]
        names = sorted(entry.name for entry in there.iterdir()) if there.is_dir() else []
        holds = f"; {there} holds {', '.join(names)}" if names else ""
        return (
            f"The local copy, {datasets_dir / file}, doesn't exist{holds}. Put it there, or choose a corpus that is "
            "at hand, such as pydoc."
        )


def local_folder(datasets_dir: Path, path: str, config: str | None) -> Path:
    """Where the local copy of a data set of the hub is, if there is one."""
    return datasets_dir / path.rpartition("/")[2] / (config or "")


def local_copy(folder: Path, split: str) -> Path | None:
    """The file of a split in a local copy, if there is one; letter case of its suffix doesn't matter."""
    if not folder.is_dir():
        return None
    start = f"{split}."
    files = {file.name[len(split) :].lower(): file for file in sorted(folder.iterdir()) if file.name.startswith(start)}
    names = [suffix + compressed for suffix in TABLES for compressed in ("", COMPRESSED)]
    return next((files[name] for name in names if name in files and files[name].is_file()), None)
