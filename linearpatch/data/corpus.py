"""A corpus: a named text source with a split for each purpose, no token of which serves two."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from linearpatch.data.blocks import SHORT_TEXT
from linearpatch.data.documents import DeferredDocuments, Document, Documents, has_text
from linearpatch.errors import ConfigError, DataError, require_choice

log = logging.getLogger(__name__)

PURPOSES = ("calibration", "distillation", "evaluation")


@dataclass(frozen=True)
class Corpus(ABC):
    """Where text comes from and which part of it each purpose reads.

    Attributes:
        name: Appears in metrics (`ppl/NAME`) and tables.
        calibration: Split for calibration; splits may be slices such as `train[:20%]`.
        distillation: Split for distillation.
        evaluation: Split for evaluation.
        separator: Joins documents into one text.
        short_text: What happens where a split has fewer tokens than the blocks that are asked for: `error`, so that a
            published protocol is what it says, or `adapt`, which reads fewer and shorter blocks and says so.
        note: What a reader of its numbers must know.
    """

    version: ClassVar[int] = 1
    needs_model: ClassVar[bool] = False  # whether the dense model generates the text

    name: str = field(default="", metadata={"identity": False})
    calibration: str = "train[:50%]"
    distillation: str = "train[50%:]"
    evaluation: str = "test"
    separator: str = "\n\n"
    short_text: str = field(default="error", metadata={"identity": False})
    note: str = field(default="", metadata={"identity": False})

    def __post_init__(self) -> None:
        require_choice("corpus.short_text", self.short_text, SHORT_TEXT)
        for purpose in PURPOSES:  # which of them share text matters only where both are read: `check_disjoint`
            parse_split(self.split(purpose))

    def say(self, message: str) -> None:
        """Log what a user must know of this text, once, however many purposes read it."""
        said: set[str] = self.__dict__.setdefault("_said", set())
        if message not in said:
            said.add(message)
            log.warning("%s", message)

    def split(self, purpose: str) -> str:
        """The split that a purpose reads."""
        return str(getattr(self, purpose))

    def notes(self, purpose: str) -> list[str]:
        """What a reader of numbers must know of the text that a purpose reads, in sentences."""
        return [self.note] if self.note else []

    def sources(self, purpose: str) -> list[tuple[Corpus, str]]:
        """The corpora that a purpose reads, itself as a rule, and of which split."""
        return [(self, self.split(purpose))]

    def check_model(self, config: Any) -> None:  # noqa: B027 - most corpora go with any model
        """Reject a model that can't read or generate this text, as far as its configuration shows that.

        Raises:
            ConfigError: says which setting to change.
        """

    @abstractmethod
    def documents(self, split: str, datasets_dir: Path | None = None) -> Documents:
        """The documents of a split; deferred where the dense model generates them.

        Raises:
            DataError: the split doesn't exist or can't be read.
        """

    def read(self, purpose: str, datasets_dir: Path | None = None) -> Documents:
        """The documents that a purpose reads.

        Raises:
            DataError: there is none.
        """
        split = self.split(purpose)
        documents = self.documents(split, datasets_dir)
        if not isinstance(documents, DeferredDocuments) and not any(map(has_text, documents)):
            hint = " A slice takes whole documents: use a longer text, or wider slices." if "[" in split else ""
            raise DataError(f"corpus {self.name}: the split {split!r} holds no text.{hint}")
        return documents


def require_corpus(what: str, value: object, *choices: str) -> None:
    """Raise `ConfigError` unless `value` is a corpus, with the choices that make it one, such as `corpus`."""
    if isinstance(value, Mapping):
        way_out = " or ".join(f"{choice}=broad" for choice in choices)
        raise ConfigError(
            f"{what} has settings ({', '.join(map(str, value))}), and no corpus is chosen there. Choose one, such as "
            f"{way_out}."
        )
    if not isinstance(value, Corpus):
        way_out = " or ".join(f"{choice}={value}" for choice in choices)
        raise ConfigError(f"{what} is {value!r}. A corpus is chosen by an override, not set as a value: {way_out}.")


def overlap(first: str, second: str) -> bool:
    """Whether two splits share documents; slices are understood in percent.

    >>> overlap("train[:20%]", "train[20%:]"), overlap("train", "train[20%:]"), overlap("train", "test")
    (False, True, False)
    """
    name, start, end = parse_split(first)
    other, other_start, other_end = parse_split(second)
    return name == other and max(start, other_start) < min(end, other_end)


def parse_split(split: str) -> tuple[str, float, float]:
    """Name, start and end (fractions) of a split.

    >>> parse_split("train[:20%]")
    ('train', 0.0, 0.2)

    Raises:
        ConfigError: it isn't a name, or a name with a slice in percent.
    """
    match = re.fullmatch(r"([\w.-]+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", split)
    name, start, end = match.groups() if match else ("", 0, 0)
    if match is None or not 0 <= int(start or 0) < int(end or 100) <= 100:
        raise ConfigError(f"split {split!r}: write a name, or a slice in percent such as train[:20%].")
    return name, int(start or 0) / 100, int(end or 100) / 100


def take_slice(documents: Sequence[Document], split: str) -> Sequence[Document]:
    """The part of a whole split's documents that a slice names; touching slices never share one."""
    _, start, end = parse_split(split)
    return documents[round(start * len(documents)) : round(end * len(documents))]


def take_share(documents: Sequence[Document], split: str) -> list[Document]:
    """The part of a text that a slice names, by characters; touching slices never share one.

    A text in which a slice begins or ends is divided there, at white space if there is any in its half before; a chat
    and a blank text belong to the slice in which their middle lies.
    """
    _, start, end = parse_split(split)
    total = sum(map(len, documents))
    first, last = start * total, end * total
    taken: list[Document] = []
    position = 0
    for document in documents:
        middle = position + len(document) / 2
        if isinstance(document, str) and has_text(document):
            piece = document[_boundary(document, first - position) : _boundary(document, last - position)]
            taken += [piece] if has_text(piece) else []
        elif first <= middle < last or (middle == total and end == 1):
            taken.append(document)
        position += len(document)
    return taken


def _boundary(text: str, place: float) -> int:
    """Where a text is divided: at the last white space in the half before a place, or there."""
    at = min(max(round(place), 0), len(text))
    if at in (0, len(text)):
        return at
    spaces = [match.end() for match in re.finditer(r"\s", text[at // 2 : at])]
    return at // 2 + spaces[-1] if spaces else at
