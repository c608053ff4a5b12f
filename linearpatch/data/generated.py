"""Text that the model under test generates itself, so that no data is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from linearpatch.data.corpus import PURPOSES, Corpus
from linearpatch.data.documents import DeferredDocuments, Document, has_text
from linearpatch.data.generating import Conversations, FreeText, Recipe, sequences
from linearpatch.data.reader import AUTO
from linearpatch.errors import ConfigError, DataError, require_range, require_seed, suggest
from linearpatch.models.decoder import context_length
from linearpatch.models.model import LoadedModel
from linearpatch.models.sampling import Sampling
from linearpatch.registry import component
from linearpatch.runtime.memory import check_batch_size
from linearpatch.storage.cache import Cache

NUMBER = 64  # of sequences, where all are read
SPARE = 1.1  # as many tokens as are read: text that is tokenised again may have fewer


@dataclass(frozen=True)
class _Generated(DeferredDocuments):
    """One part of the text, before the model is loaded."""

    corpus: GeneratedCorpus
    split: str

    @property
    def most_tokens(self) -> float:
        """Those that are generated; with `auto`, as many as are asked for."""
        return math.inf if self.corpus.number == AUTO else self.corpus.number * self.corpus.length

    def generate(self, model: LoadedModel, cache: Cache, tokens: int | None = None) -> Sequence[Document]:
        """Generate the sequences; each may hold several documents."""
        corpus = self.corpus
        recipe = corpus.recipe(model, self.split)
        number, what = corpus.number_for(tokens), f"{corpus.name}/{self.split}"
        generated = sequences(recipe, model, cache, number=number, batch_size=corpus.batch_size, what=what)
        documents = [
            document
            for index, tokens in enumerate(generated)
            for document in recipe.documents(index, tokens)
            if has_text(document)
        ]
        if not documents:
            raise DataError(
                f"corpus {corpus.name}: the model generated no text, only special tokens or white space. Choose "
                "another corpus, such as corpus=pydoc."
            )
        return documents


@component("corpus", "generated")
@dataclass(frozen=True)
class GeneratedCorpus(Corpus):
    """Text sampled from the dense model of the run: it needs no data.

    Without `conversations` every sequence begins with `start`, and where the model ends a document, the next begins in
    the same sequence, as packed training text does: all sequences are full, and nothing is padded. The three splits
    have random numbers of their own. The text is cached by the model's weights.

    Attributes:
        number: Sequences in each split; `auto` generates as many as a purpose reads, and 64 where it reads them all.
        length: Tokens in each; a conversation may end earlier.
        temperature: Divides the logits.
        top_p: Sample from the likeliest tokens that hold this share of the probability.
        start: The token that free text begins with, such as `<|endoftext|>`, which models are trained to find between
            documents; empty: BOS, or EOS where the model has none.
        conversations: Generate questions and answers in the model's chat template, in place of free text.
        prompts: What users say in the conversations, divided among the splits; empty: the model generates that, too.
        seed: Of the sampling.
        batch_size: Sequences generated at a time; `auto` takes as many as fit into memory.
    """

    needs_model: ClassVar[bool] = True

    name: str = field(default="generated", metadata={"identity": False})
    calibration: str = "calibration"
    distillation: str = "distillation"
    evaluation: str = "evaluation"
    short_text: str = field(default="adapt", metadata={"identity": False})
    number: Any = AUTO  # OmegaConf has no union with str
    length: int = 1024
    temperature: float = 1.0
    top_p: float = 0.98
    start: str = ""
    conversations: bool = False
    prompts: list[str] = field(default_factory=list)
    seed: int = 0
    batch_size: Any = field(default=AUTO, metadata={"identity": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number != AUTO:
            if not isinstance(self.number, int) or isinstance(self.number, bool):
                raise ConfigError(f"corpus.number is {self.number!r}. Allowed: auto, or a whole number of at least 1.")
            require_range("corpus.number", self.number, low=1)
        require_range("corpus.length", self.length, low=2)
        require_range("corpus.temperature", self.temperature, low=0.01)
        require_range("corpus.top_p", self.top_p, low=0.01, high=1)
        require_seed("corpus.seed", self.seed)
        check_batch_size("corpus.batch_size", self.batch_size)
        if self.start and self.conversations:
            raise ConfigError(
                "corpus.start is for free text: conversations begin as the chat template has it. Leave it out."
            )
        if self.prompts and not self.conversations:
            raise ConfigError("corpus.prompts are what users say in conversations. Add corpus.conversations=true.")
        if self.prompts and len(set(self.prompts)) < len(PURPOSES):
            raise ConfigError(
                f"corpus.prompts has {len(set(self.prompts))} different ones, and the splits {', '.join(PURPOSES)} "
                "need at least one each. Give at least 3, or none, and the model generates them."
            )

    def check_model(self, config: Any) -> None:
        """Reject sequences that are longer than the model reads."""
        longest = context_length(config)
        if longest is not None and longest < self.length:
            number = "" if self.number == AUTO else f"number to {self.number * self.length // longest}"
            as_much = number and f" and, for as much text, {number}"
            raise ConfigError(
                f"corpus {self.name}: length is {self.length:,}, and the model reads {longest:,} tokens. Set length "
                f"to at most {longest}{as_much}."
            )

    def number_for(self, tokens: int | None) -> int:
        """How many sequences are generated for a purpose that reads so many tokens, all of them where that is None."""
        if self.number != AUTO:
            return int(self.number)
        return NUMBER if tokens is None else max(1, math.ceil(SPARE * tokens / self.length))

    def documents(self, split: str, datasets_dir: Path | None = None) -> DeferredDocuments:
        """Those of a split, to be generated."""
        if split not in PURPOSES:
            raise DataError(f"corpus {self.name} has no split {split!r}. {suggest(split, PURPOSES)}")
        return _Generated(self, split)

    def recipe(self, model: LoadedModel, split: str) -> Recipe:
        """How a split's sequences are generated with a model.

        Raises:
            DataError: the tokenizer has no token to begin with, or no chat template.
        """
        sampling = Sampling(self.temperature, self.top_p)
        name = f"{self.seed}/{split}"
        if not self.conversations:
            return FreeText(model.tokenizer, sampling, self.length, name, self.start)
        prompts = tuple(dict.fromkeys(self.prompts))[PURPOSES.index(split) :: len(PURPOSES)]
        return Conversations(model.tokenizer, sampling, self.length, name, prompts)
