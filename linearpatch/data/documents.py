"""Documents: what a value of a text column may be. Texts and chats are; everything else is rejected by its type."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from linearpatch.data.rows import kind_of
from linearpatch.errors import DataError
from linearpatch.models.model import LoadedModel
from linearpatch.storage.cache import Cache
from linearpatch.text import counted

SHOWN = 60  # characters of a value that an error shows


@dataclass(frozen=True)
class Chat:
    """A conversation, which only a tokenizer's chat template makes a text of.

    Attributes:
        messages: Each with its `role` and `content`.
        place: Where it stands, for errors.
    """

    messages: tuple[Mapping[str, Any], ...]
    place: str = ""

    def __len__(self) -> int:
        """Characters of its messages."""
        return sum(len(message["content"]) for message in self.messages)


Document: TypeAlias = str | Chat


class DeferredDocuments(ABC):
    """Documents that exist only once the dense model is loaded: it generates some or all of them."""

    @property
    @abstractmethod
    def most_tokens(self) -> float:
        """So many tokens they have at most; infinity where that isn't known before."""

    @abstractmethod
    def generate(self, model: LoadedModel, cache: Cache, tokens: int | None = None) -> Sequence[Document]:
        """Generate them, or take them from the cache.

        Args:
            model: The dense model.
            cache: Keeps what was generated.
            tokens: How many will be read of them; None: as many as there are.

        Raises:
            DataError: the model or its tokenizer can't generate such text.
        """


Documents: TypeAlias = Sequence[Document] | DeferredDocuments


def generated(documents: Documents, model: LoadedModel, cache: Cache, tokens: int | None = None) -> Sequence[Document]:
    """The documents themselves, once there is a model (`DeferredDocuments.generate`)."""
    return documents.generate(model, cache, tokens) if isinstance(documents, DeferredDocuments) else documents


@dataclass(frozen=True)
class Column:
    """The documents of a text column.

    Attributes:
        documents: Those of the rows that have one.
        missing: How many rows have none: null, NaN, an empty list, or no such field.
    """

    documents: list[Document]
    missing: int = 0

    @classmethod
    def of(cls, values: Iterable[Any], source: str, column: str) -> Column:
        """Check the values of a column.

        Raises:
            DataError: one is neither text, nor a chat, nor missing.
        """
        documents: list[Document] = []
        missing = 0
        for number, value in enumerate(values, start=1):
            if _is_missing(value):
                missing += 1
            else:
                documents.append(_document(value, f"{source}, row {number}, column {column!r}"))
        return cls(documents, missing)

    @classmethod
    def joined(cls, columns: Iterable[Column]) -> Column:
        """Those of several files as one."""
        parts = list(columns)
        return cls([document for part in parts for document in part.documents], sum(part.missing for part in parts))

    @property
    def remark(self) -> str | None:
        """What to say of the rows without text."""
        if not self.missing:
            return None
        rows = counted(self.missing + len(self.documents), "row")
        return f"{self.missing:,} of {rows} without text (null, NaN or missing) left out"


def has_text(document: Document) -> bool:
    """Whether there is more in it than white space."""
    if isinstance(document, Chat):
        return any(message["content"].strip() for message in document.messages)
    return bool(document.strip())


def rendered(documents: Sequence[Document], tokenizer: Any, source: str) -> list[str]:
    """The documents as texts, chats in the format of the tokenizer's chat template.

    Raises:
        DataError: there are chats, and the tokenizer has no template or one that rejects them.
    """
    return [_render(each, tokenizer, source) if isinstance(each, Chat) else each for each in documents]


def _render(chat: Chat, tokenizer: Any, source: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{chat.place} holds a chat, and this model's tokenizer has no chat template to make a text of it "
            f"({source}). Use a model with one (as a rule those named Instruct or Chat), or a column of plain text "
            "(corpus.column=NAME)."
        )
    try:
        return str(tokenizer.apply_chat_template([dict(message) for message in chat.messages], tokenize=False))
    except Exception as error:  # templates run code of their own and may raise anything
        raise DataError(
            f"{chat.place}: the tokenizer's chat template rejects this chat with the roles "
            f"{', '.join(str(message['role']) for message in chat.messages)}: {error}. Leave such rows out, or use a "
            "column of plain text (corpus.column=NAME)."
        ) from error


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == []


def _document(value: Any, place: str) -> Document:
    if isinstance(value, str):
        return _valid(value, place)
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return Chat(tuple(_message(message, number, place) for number, message in enumerate(value, start=1)), place)
    advice = "Choose a column of text (corpus.column=NAME), or save this one as text."
    if isinstance(value, bytes):
        advice = "Save the column as strings; in pandas that is column.str.decode('utf-8')."
    raise DataError(f"{place}: {kind_of(value)} where text was expected: {_shown(value)}. {advice}")


def _message(message: Mapping[str, Any], number: int, place: str) -> Mapping[str, Any]:
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            what = f"its {key} is {kind_of(message[key])}" if key in message else f"it has no {key}"
            raise DataError(
                f"{place}: a list of objects is read as a chat, in which each message has role and content as text. "
                f"Message {number} is {_shown(message)}: {what}. Save chats in this form, or choose a column of text "
                "(corpus.column=NAME)."
            )
        _valid(message[key], place)
    # Tables fill fields that other messages have with null.
    return {key: value for key, value in message.items() if value is not None}


def _valid(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start:,} is half of a surrogate pair (U+{ord(text[error.start]):04X}), which "
            "no tokenizer reads. Repair the text, or leave the row out."
        ) from error
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
