"""Texts that a program holds already: lists, chats, `datasets.Dataset`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.data.corpus import PURPOSES, Corpus
from linearpatch.data.documents import Column, Document, has_text
from linearpatch.data.files import TextCorpus
from linearpatch.errors import DataError, looked_in, suggest

log = logging.getLogger(__name__)

SHOWN = 40  # characters of a text that is no path


@dataclass(frozen=True)
class InMemoryCorpus(Corpus):
    """Texts in memory; every purpose reads all of them."""

    values: tuple[Document, ...] = ()
    short_text: str = field(default="adapt", metadata={"identity": False})

    def documents(self, split: str, datasets_dir: Path | None = None) -> Sequence[Document]:
        """All of them."""
        return self.values


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, an unknown user, a zero byte
        return False


def corpus_of(text: Any, column: str) -> Corpus:
    """A corpus of which every purpose reads all."""
    whole = dict.fromkeys(PURPOSES, "all")
    if isinstance(text, str) and not _is_there(text):
        shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
        raise DataError(
            f"text is {shown}, and there is no such file or folder{looked_in(text)}. Pass a text itself in a list: "
            "[text]."
        )
    if isinstance(text, (str, Path)):
        return TextCorpus(path=str(text), column=column, **whole)
    values = text
    if isinstance(text, Mapping):
        splits = ", ".join(map(str, text)) or "nothing"
        raise DataError(f"text is a {type(text).__name__} of {splits}. Pass one of them, such as text['train'].")
    if hasattr(text, "column_names"):
        if column not in text.column_names:
            raise DataError(f"The dataset has no column {column!r}. {suggest(column, text.column_names)}")
        values = text[column]
    elif not isinstance(text, Sequence):
        raise DataError(
            f"text is of the type {type(text).__name__}. Allowed: a path, a list of texts or chats, or a "
            "datasets.Dataset."
        )
    documents = Column.of(values, "text", column)
    if documents.remark:
        log.warning("%s", documents.remark)
    if not any(map(has_text, documents.documents)):
        raise DataError("text is empty or only white space. Pass at least one non-empty text.")
    return InMemoryCorpus(name="text", values=tuple(documents.documents), **whole)
