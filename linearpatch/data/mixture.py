"""Several corpora as one text, for what must serve more than one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.data.corpus import PURPOSES, Corpus, require_corpus
from linearpatch.data.documents import DeferredDocuments, Document, Documents, generated
from linearpatch.data.mixing import MixedDocuments, characters_per_token, shares, size
from linearpatch.errors import ConfigError, named_as
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component, identity
from linearpatch.storage.cache import Cache


@component("corpus", "mixture")
@dataclass(frozen=True)
class MixtureCorpus(Corpus):
    """Documents of several corpora in turn, always of the one that has given the fewest characters so far.

    So every stretch of the text, also its held-out end, has all kinds in equal shares, to within a document. It ends
    where the first corpus does, unless more is read: then a short part is spread over a longer text
    (`MixedDocuments`). Each purpose reads what it reads of each corpus.

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
                    f"corpus {self.name} has no splits of its own, and {purpose} is {self.split(purpose)!r}. Set the "
                    f"split of a part, such as corpus.parts.NAME.{purpose}={self.split(purpose)}."
                )
        for name, part in self.leaves.items():
            require_corpus(f"The part {name} of corpus {self.name}", part, f"corpus@corpus.parts.{name}")
        if not self.leaves:
            raise ConfigError(f"corpus {self.name} has no parts. Add some: +corpus@corpus.parts.NAME=CORPUS.")

    def notes(self, purpose: str) -> list[str]:
        """Of several texts to calibrate on, which they are."""
        notes = super().notes(purpose)
        if purpose == "calibration" and len(names := dict.fromkeys(part.name for part in self.leaves.values())) > 1:
            notes.append(
                f"calibrated on {' and '.join(names)} in equal shares (calibration.corpus=null: the run's own text)"
            )
        return notes

    def sources(self, purpose: str) -> list[tuple[Corpus, str]]:
        """Those of the parts."""
        return [source for part in self.leaves.values() for source in part.sources(purpose)]

    def check_model(self, config: Any) -> None:
        """Let each part look."""
        for part in self.leaves.values():
            part.check_model(config)

    def documents(self, split: str, datasets_dir: Path | None = None) -> Documents:
        """Those of all parts that a purpose reads, taken in turn."""
        parts = []
        for name, part in self.leaves.items():
            with named_as({"corpus.": f"corpus.parts.{name}."}):
                parts.append(part.read(split, datasets_dir))
        known = [part for part in parts if not isinstance(part, DeferredDocuments)]
        names = [f"{name} ({part.name})" for name, part in self.leaves.items()]
        return MixedDocuments(known, names) if len(known) == len(parts) else DeferredMixture(parts, names)

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
    names: Sequence[str]

    @property
    def most_tokens(self) -> float:
        """As many as are asked for: a part that is generated is as long as it has to be."""
        return math.inf

    def generate(self, model: LoadedModel, cache: Cache, tokens: int | None = None) -> Sequence[Document]:
        """The parts, of which those that are generated make up for the others where these are short."""
        if tokens is None:
            return MixedDocuments([generated(part, model, cache) for part in self.parts], self.names)
        known = [part for part in self.parts if not isinstance(part, DeferredDocuments)]
        rate = characters_per_token(known, model.tokenizer)
        sizes = [math.inf if isinstance(part, DeferredDocuments) else size(part) for part in self.parts]
        asked = [math.ceil(share / rate) for share in shares(sizes, tokens * rate)]
        documents = [generated(part, model, cache, share) for part, share in zip(self.parts, asked, strict=True)]
        return MixedDocuments(documents, self.names)
