"""Several corpora as one text, for what must serve more than one kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.data.corpus import PURPOSES, Corpus, require_corpus
from linearpatch.data.documents import DeferredDocuments, Document, Documents, generated
from linearpatch.errors import ConfigError
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component, identity
from linearpatch.storage.cache import Cache

SPARE = 1.1  # as many characters as the tokens that are read are expected to have
SAMPLED, SAMPLE = 50, 2000  # documents of each part, and characters of each, by which that is expected


@component("corpus", "mixture")
@dataclass(frozen=True)
class MixtureCorpus(Corpus):
    """Documents of several corpora in turn, always of the one that has given the fewest characters so far.

    So every stretch of the text, also its held-out end, has all kinds in equal shares. It ends where the first
    corpus does; with a part that the model generates it is as long as it has to be, and a short part is spread over it.
    Each purpose reads what it reads of each corpus.

    Attributes:
        parts: Corpora by a name of your choice; null leaves one out. A mixture among them gives its own parts, and of
            equal ones the first counts.
    """

    name: str = field(default="mixture", metadata={"identity": False})
    calibration: str = "calibration"
    distillation: str = "distillation"
    evaluation: str = "evaluation"
    parts: dict[str, Any] = field(default_factory=dict)  # of Corpus, as in Perplexity

    def __post_init__(self) -> None:
        for purpose in PURPOSES:
            if self.split(purpose) != purpose:
                raise ConfigError(
                    f"corpus mixture has no splits of its own, and {purpose} is {self.split(purpose)!r}. Set the split "
                    f"of a part, such as corpus.parts.NAME.{purpose}={self.split(purpose)}."
                )
        for name, part in self.leaves.items():
            choices = (f"corpus@corpus.parts.{name}", f"corpus@calibration.corpus.parts.{name}")
            require_corpus(f"The part {name} of corpus mixture", part, *choices)
        if not self.leaves:
            raise ConfigError(
                "corpus mixture has no parts. Add some: +corpus@corpus.parts.NAME=CORPUS, or where calibration alone "
                "reads it +corpus@calibration.corpus.parts.NAME=CORPUS."
            )

    def sources(self, purpose: str) -> list[tuple[Corpus, str]]:
        """Those of the parts."""
        return [source for part in self.leaves.values() for source in part.sources(purpose)]

    def check_model(self, config: Any) -> None:
        """Let each part look."""
        for part in self.leaves.values():
            part.check_model(config)

    def documents(self, split: str, datasets_dir: Path | None = None) -> Documents:
        """Those of all parts that a purpose reads, taken in turn."""
        parts = [part.read(split, datasets_dir) for part in self.leaves.values()]
        known = [part for part in parts if not isinstance(part, DeferredDocuments)]
        return in_turn(known) if len(known) == len(parts) else DeferredMixture(parts)

    @property
    def leaves(self) -> Mapping[str, Corpus]:
        """The parts by name, those of mixtures among them as well, and each once."""
        parts: dict[str, Corpus] = {}
        for name, part in self.parts.items():
            own = part.leaves if isinstance(part, MixtureCorpus) else {name: part} if part is not None else {}
            for key, each in own.items():
                if not any(_are_equal(each, other) for other in parts.values()):
                    parts[key if part is each else f"{name}.{key}"] = each
        return parts


def _are_equal(part: Any, other: Any) -> bool:
    """Whether two parts give the same documents."""
    return isinstance(part, Corpus) and isinstance(other, Corpus) and identity(part) == identity(other)


@dataclass(frozen=True)
class DeferredMixture(DeferredDocuments):
    """Parts that can be mixed once the model has generated the last of them."""

    parts: Sequence[Documents]

    @property
    def most_tokens(self) -> float:
        """As many as are asked for: a part that is generated is as long as it has to be."""
        return math.inf

    def generate(self, model: LoadedModel, cache: Cache, tokens: int | None = None) -> Sequence[Document]:
        """The parts, some of them generated, taken in turn.

        For a purpose that reads so many tokens, a part that is too short for its share is spread over the text, and the
        others make up for it.
        """
        if tokens is None:
            return in_turn([generated(part, model, cache) for part in self.parts])
        known = [part for part in self.parts if not isinstance(part, DeferredDocuments)]
        rate = _characters_per_token(known, model.tokenizer)
        total = SPARE * tokens * rate
        asked = shares([math.inf if isinstance(part, DeferredDocuments) else _size(part) for part in self.parts], total)
        documents = [
            generated(part, model, cache, math.ceil(share / rate))
            for part, share in zip(self.parts, asked, strict=True)
        ]
        return in_turn(documents, total)


def in_turn(parts: Sequence[Sequence[Document]], total: float | None = None) -> list[Document]:
    """The documents of several parts, always of the one that is furthest behind its share.

    Args:
        parts: Each with its documents.
        total: Characters altogether, of which the parts have their `shares`; None: equal shares, until a part ends.
    """
    weights = [1.0] * len(parts) if total is None else shares([max(1, _size(part)) for part in parts], total)
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


def _size(documents: Sequence[Document]) -> int:
    return sum(map(len, documents))


def _characters_per_token(parts: Iterable[Sequence[Document]], tokenizer: Any) -> float:
    """Of the beginnings of some texts; 4 where there is none."""
    texts = [text[:SAMPLE] for part in parts for text in part[:SAMPLED] if isinstance(text, str) and text.strip()]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return sum(map(len, texts)) / tokens if tokens else 4.0
