"""Evaluations on texts: one measurement for each corpus, cut into windows."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.data.corpus import Corpus, require_corpus
from linearpatch.data.reader import Reader, Text
from linearpatch.errors import ConfigError
from linearpatch.evaluation.evaluation import Evaluation, Measurement, Preparation
from linearpatch.models.model import LoadedModel
from linearpatch.storage.cache import Cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """Measures on windows of texts.

    Attributes:
        corpora: Corpora by a name of your choice; null leaves one out. Without any the run's evaluation corpus is read.
    """

    corpora: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def spec(self, name: str) -> BlockSpec:
        """How texts become windows, for the evaluation of that name."""

    @abstractmethod
    def measurement(self, name: str, corpus: str, blocks: TokenBlocks, model: LoadedModel, cache: Cache) -> Measurement:
        """The measurement on the windows of a corpus, given the dense model and what is kept of it."""

    @abstractmethod
    def with_windows(self, number: int, length: int) -> TextEvaluation:
        """The same with the windows that a short text gave."""

    def check_corpora(self, name: str) -> None:
        """Reject what is no corpus, for the evaluation of that name."""
        keys: dict[str, str] = {}
        for key, corpus in self._given.items():
            require_corpus(f"eval.{name}.corpora.{key}", corpus, f"+corpus@eval.{name}.corpora.{key}")
            if (other := keys.setdefault(corpus.name, key)) != key:
                raise ConfigError(
                    f"eval.{name}.corpora.{other} and eval.{name}.corpora.{key} are both called {corpus.name!r}, and "
                    f"so would be their metrics. Call one otherwise: eval.{name}.corpora.{key}.name={key}."
                )

    @property
    def _given(self) -> Mapping[str, Corpus]:
        """The corpora that aren't left out."""
        return {key: corpus for key, corpus in self.corpora.items() if corpus is not None}

    def readers(self, reader: Reader) -> tuple[Reader, ...]:
        """One reader for each corpus."""
        return tuple(replace(reader, corpus=corpus) for corpus in self._given.values()) or (reader,)

    def prepare(self, name: str, reader: Reader) -> Preparation:
        """Read each corpus; cut into windows, each is a measurement of its own."""
        texts = [each.open() for each in self.readers(reader)]

        def measurements(model: LoadedModel, cache: Cache) -> list[Measurement]:
            return [self._on_text(name, text.generated(model, cache, self.spec(name)), model, cache) for text in texts]

        return measurements

    def _on_text(self, name: str, text: Text, model: LoadedModel, cache: Cache) -> Measurement:
        spec = self.spec(name)
        blocks = text.cut(spec, model.tokenizer)
        settings = self
        if shortage := spec.shortage(blocks):
            log.warning("evaluation text %s: %s; the protocol of the result says so", text.source, shortage)
            settings = self.with_windows(*blocks.ids.shape)
        return settings.measurement(name, text.name, blocks, model, cache)
