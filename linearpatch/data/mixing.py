"""Documents of several texts in turn, so that every stretch of the whole has all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from linearpatch.data.documents import Document
from linearpatch.text import counted

SPARE = 1.1  # as many characters as the tokens that are read are expected to have
SAMPLED, SAMPLE = 50, 2000  # documents of each part, and characters of each, by which that is expected


class MixedDocuments(list[Document]):
    """The documents of several parts in equal shares of characters, until the first part ends.

    Attributes:
        parts: Each with its documents.
        names: Of the parts.
    """

    def __init__(self, parts: Sequence[Sequence[Document]], names: Sequence[str]) -> None:
        super().__init__(in_turn(parts))
        self.parts = parts
        self.names = names

    def reaching(self, tokens: int, tokenizer: Any) -> Sequence[Document]:
        """Documents for a purpose that reads so many tokens.

        These, where they are enough. Else a part that is too short for its share is spread over a text of that length,
        and the others make up for it, as far as there is more of them.
        """
        total = self._characters(tokens, tokenizer)
        return self if size(self) >= total else in_turn(self.parts, total)

    def shortages(self, tokens: int, tokenizer: Any) -> list[str]:
        """The parts that have less than half of their share of a text of so many tokens, in sentences."""
        total = self._characters(tokens, tokenizer)
        given = shares([size(part) for part in self.parts], total)
        return [
            f"{name} has {share / sum(given):.1%} of the mixture, since it has {counted(size(part), 'character')}. "
            "What is fitted on it follows the other parts: bring more of it."
            for name, part, share in zip(self.names, self.parts, given, strict=True)
            if share < sum(given) / len(self.parts) / 2
        ]

    def _characters(self, tokens: int, tokenizer: Any) -> float:
        return SPARE * tokens * characters_per_token(self.parts, tokenizer)


def in_turn(parts: Sequence[Sequence[Document]], total: float | None = None) -> list[Document]:
    """The documents of several parts, always of the one that is furthest behind its share.

    Args:
        parts: Each with its documents.
        total: Characters altogether, of which the parts have their `shares`; None: equal shares, until a part ends.
    """
    weights = [1.0] * len(parts) if total is None else shares([max(1, size(part)) for part in parts], total)
    left = [iter(part) for part in parts]
    given = [0] * len(parts)
    unfinished = list(range(len(parts)))
    mixed: list[Document] = []
    while unfinished and (total is None or sum(given) < total):
        behind = min(unfinished, key=lambda index: given[index] / weights[index])
        document = next(left[behind], None)
        if document is not None:
            given[behind] += len(document)
            mixed.append(document)
        elif total is None:
            break
        else:
            unfinished.remove(behind)
    return mixed


def shares(sizes: Sequence[float], total: float) -> list[float]:
    """Equal shares of a total, but of no part more than its size: what a small one leaves, the others get."""
    given = [0.0] * len(sizes)
    left = total
    for count, index in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        given[index] = min(sizes[index], left / (len(sizes) - count))
        left -= given[index]
    return given


def size(documents: Sequence[Document]) -> int:
    """Characters of documents."""
    return sum(map(len, documents))


def characters_per_token(parts: Iterable[Sequence[Document]], tokenizer: Any) -> float:
    """Of the beginnings of some texts; 4 where there is none."""
    texts = [text[:SAMPLE] for part in parts for text in part[:SAMPLED] if isinstance(text, str) and text.strip()]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return sum(map(len, texts)) / tokens if tokens else 4.0
