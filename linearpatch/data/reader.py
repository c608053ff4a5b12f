"""Readers: who reads which corpus, cut into which blocks. The group `calibration` holds the presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from linearpatch.data.blocks import BlockSpec, SettingNames, TokenBlocks
from linearpatch.data.corpus import PURPOSES, Corpus, overlap, require_corpus
from linearpatch.data.documents import DeferredDocuments, Documents, generated, rendered
from linearpatch.data.mixing import MixedDocuments
from linearpatch.data.quality import text_warnings
from linearpatch.errors import ConfigError, named_as, require_choice, require_range, settings_of
from linearpatch.models.model import LoadedModel
from linearpatch.registry import component, identity
from linearpatch.storage.cache import Cache


@dataclass(frozen=True)
class BlocksOfText:
    """A text of its own and how it becomes blocks.

    Attributes:
        corpus: A corpus of its own; null reads the run's.
        num_blocks: Number of token blocks; null takes all disjoint ones (`sampling=first`).
        block_length: Tokens in each.
        sampling: `first`, `windows` or `crops`; see `BlockSpec`.
        bos: `tokenizer`, `each` or `none`; see `BlockSpec`.
    """

    purpose: ClassVar[str]
    names: ClassVar[SettingNames]
    drop_repetitions: ClassVar[bool] = True  # what is fitted or trained on needs none

    corpus: Any = None  # a Corpus; OmegaConf would make an optional frozen dataclass read-only
    num_blocks: int | None = 16
    block_length: int = 1024
    sampling: str = "windows"
    bos: str = "tokenizer"

    def __post_init__(self) -> None:
        if self.corpus is not None:
            require_corpus(f"{self.purpose}.corpus", self.corpus, f"corpus@{self.purpose}.corpus")
        with settings_of(self.purpose):
            self.blocks(seed=0)

    def blocks(self, seed: int) -> BlockSpec:
        """The cut, with the run's seed."""
        return BlockSpec(
            self.num_blocks, self.block_length, self.sampling, self.bos, seed, self.drop_repetitions, names=self.names
        )


AUTO = "auto"
TOKENS_PER_UNKNOWN = 20  # of a fit, for each output channel; with 5, perplexity is 4 % higher, with 2 11 %
FEWEST_BLOCKS = 16  # that `auto` takes, since rankings and scales need text, too


@component("calibration", "blocks")
@dataclass(frozen=True)
class Calibration(BlocksOfText):
    """The text from which layers are chosen and patches fitted.

    Attributes:
        num_blocks: Number of token blocks; null takes all disjoint ones (`sampling=first`). `auto`: 20 tokens for each
            unknown of the patch's fit for an output channel (the stream's width, for `refit` also the MLP's), and at
            least 16 blocks; where the text has less, all of it, and a warning. Runs with other patches then read other
            numbers of blocks.
        batch_size: Blocks in one forward pass.
        held_out_blocks: Blocks at the end of the text on which nothing is fitted, for those who choose by a loss
            (pruner=patch_aware, patch.ridge=auto) and for comparing a fit with no patch (`patch.compare`); the others
            come from the rest of the text. Null: half as many as `num_blocks` (8 with `auto`) where something chooses,
            else one for eight, from text that the others leave, so that they are the same with and without. 0: none.
        held_out_copies: So many more blocks among those held out, in which a passage of one of them stands twice: what
            is chosen by a loss then keeps what lets a model copy from its context (`TokenBlocks.with_copies`).
        offload_streams: Keep the hidden states of a search in CPU memory, where the model is on a GPU: one stream for
            each layer and token, 17 GiB at 7B and 64k tokens. Results are the same; a search takes longer. Null: those
            that would leave less than a fifth of the GPU's memory free.
    """

    purpose: ClassVar[str] = "calibration"
    names: ClassVar[SettingNames] = SettingNames("calibration")

    num_blocks: Any = 16  # a whole number, null or `auto`
    batch_size: int = 1
    held_out_blocks: int | None = None
    held_out_copies: int = field(default=0, metadata={"identity": "changed"})
    offload_streams: bool | None = field(default=None, metadata={"identity": False})

    def __post_init__(self) -> None:
        require_range("calibration.batch_size", self.batch_size, low=1)
        if self.held_out_blocks is not None:
            require_range("calibration.held_out_blocks", self.held_out_blocks, low=0)
        require_range("calibration.held_out_copies", self.held_out_copies, low=0)
        check_copies(self.held_out_copies, self.held_out_blocks)
        if self.num_blocks not in (None, AUTO) and not _is_whole(self.num_blocks):
            raise ConfigError(
                f"calibration.num_blocks is {self.num_blocks!r}. Allowed: a whole number of at least 1, auto, or null."
            )
        if self.is_sized_by_patch and self.sampling == "first":
            raise ConfigError(
                "calibration.num_blocks=auto takes blocks from all over the text, and calibration.sampling is first. "
                "Use calibration.sampling=windows, or a number of blocks."
            )
        super().__post_init__()

    @property
    def is_sized_by_patch(self) -> bool:
        """Whether the patch and the model decide how many blocks there are."""
        return bool(self.num_blocks == AUTO)

    def sized(self, unknowns: int) -> Calibration:
        """With the number of blocks that a fit needs, where it is `auto`.

        Args:
            unknowns: Of the fit, for each output channel.
        """
        if not self.is_sized_by_patch:
            return self
        return replace(self, num_blocks=max(FEWEST_BLOCKS, ceil(TOKENS_PER_UNKNOWN * unknowns / self.block_length)))

    def blocks(self, seed: int) -> BlockSpec:
        """The cut, with the run's seed; of `auto`, the least."""
        return super().blocks(seed) if not self.is_sized_by_patch else self.sized(0).blocks(seed)

    def num_held_out(self, needed: bool) -> int:
        """How many blocks are held out.

        Raises:
            ConfigError: some are needed, and none are held out.
        """
        if not needed:
            return self.held_out_blocks or 0
        if self.held_out_blocks == 0 or (self.held_out_blocks is None and self.num_blocks is None):
            raise ConfigError(
                f"calibration.held_out_blocks={self.held_out_blocks} with calibration.num_blocks={self.num_blocks} "
                "holds no text out, and this run chooses by a loss on text that nothing was fitted on, as "
                "pruner=patch_aware and patch.ridge=auto do. Set calibration.held_out_blocks to at least 1, such as 8."
            )
        return self.held_out_blocks or max(1, (self.sized(0).num_blocks or 0) // 2)


@dataclass(frozen=True)
class EvaluationText:
    """The text on which models are measured.

    Attributes:
        corpus: A corpus of its own; null reads the run's.
    """

    corpus: Any = None  # a Corpus, as in Calibration

    def __post_init__(self) -> None:
        if self.corpus is not None:
            require_corpus("evaluation.corpus", self.corpus, "corpus@evaluation.corpus")


@dataclass(frozen=True)
class DistillationText(BlocksOfText):
    """The text on which patches are trained, and that on which training is watched.

    Attributes:
        validation_blocks: Disjoint blocks at the end of the text, of which training sees no token.
    """

    purpose: ClassVar[str] = "distillation"
    names: ClassVar[SettingNames] = SettingNames("distillation", held_out="validation_blocks")

    num_blocks: int | None = 5000
    block_length: int = 2048
    sampling: str = "crops"
    validation_blocks: int = 16

    def __post_init__(self) -> None:
        require_range("distillation.validation_blocks", self.validation_blocks, low=1)
        require_choice("distillation.sampling", self.sampling, ("crops", "windows", "first"))
        super().__post_init__()


@dataclass(frozen=True)
class Text:
    """Documents that have been read.

    Attributes:
        documents: Texts and chats, which the model may have to generate (`generated`).
        separator: Joins them.
        name: Of the corpus.
        source: Of the text, such as `wikitext2/test`.
        short_text: `error` or `adapt`; see `Corpus`.
    """

    documents: Documents
    separator: str
    name: str
    source: str
    short_text: str = "error"

    @property
    def is_deferred(self) -> bool:
        """Whether some of the documents have still to be generated."""
        return isinstance(self.documents, DeferredDocuments)

    def generated(self, model: LoadedModel, cache: Cache, spec: BlockSpec, held_out: int | None = 0) -> Text:
        """The same with the documents that only the dense model can generate; itself where there are none.

        Args:
            model: The dense model.
            cache: Keeps what was generated.
            spec: How the text will be cut, so that there is enough of it.
            held_out: Blocks that will be held out; None: as many as `cut_beside` holds out.
        """
        documents = generated(self.documents, model, cache, spec.most_tokens(held_out))
        return self if documents is self.documents else replace(self, documents=documents)

    def texts(self, tokenizer: Any, tokens: int | None = None) -> Sequence[str]:
        """The documents as texts, chats in the tokenizer's own format.

        Args:
            tokenizer: Of the model.
            tokens: How many will be read, so that a mixture is long enough; None: all that there are.
        """
        assert not isinstance(self.documents, DeferredDocuments)
        documents = self.documents
        if isinstance(documents, MixedDocuments) and tokens is not None:
            documents = documents.reaching(tokens, tokenizer)
        return rendered(documents, tokenizer, self.source)

    def cut(self, spec: BlockSpec, tokenizer: Any) -> TokenBlocks:
        """Token blocks of the text."""
        return self.allowed(spec).cut(self.texts(tokenizer, spec.most_tokens()), self.separator, tokenizer, self.source)

    def warnings(self, blocks: TokenBlocks, spec: BlockSpec, tokenizer: Any) -> list[str]:
        """What makes blocks of this text unfit to calibrate on, in sentences with figures."""
        tokens = spec.most_tokens()
        warnings = text_warnings(blocks, self.texts(tokenizer, tokens), spec, tokenizer)
        if isinstance(self.documents, MixedDocuments) and tokens is not None:
            warnings += [
                f"calibration text {self.source}: {each}" for each in self.documents.shortages(tokens, tokenizer)
            ]
        return warnings

    def cut_apart(self, spec: BlockSpec, tokenizer: Any, held_out: int) -> tuple[TokenBlocks, TokenBlocks]:
        """Token blocks of the text but its end, and so many of its end."""
        texts = self.texts(tokenizer, spec.most_tokens(held_out))
        return self.allowed(spec).cut_apart(texts, self.separator, tokenizer, self.source, held_out)

    def cut_beside(self, spec: BlockSpec, tokenizer: Any) -> tuple[TokenBlocks, TokenBlocks | None]:
        """Token blocks of the text, and a few more of what they leave; None where there are none."""
        texts = self.texts(tokenizer, spec.most_tokens(None))
        return self.allowed(spec).cut_beside(texts, self.separator, tokenizer, self.source)

    def allowed(self, spec: BlockSpec) -> BlockSpec:
        """The cut, with what happens where this text is too short for it."""
        return spec if spec.short_text == "adapt" else replace(spec, short_text=self.short_text)


@dataclass(frozen=True)
class Reader:
    """A corpus for one purpose.

    Attributes:
        corpus: The corpus.
        purpose: `calibration`, `distillation` or `evaluation`.
        datasets_dir: Local copies of data sets.
        key: Of the corpus in the configuration, for errors.
    """

    corpus: Corpus
    purpose: str
    datasets_dir: Path | None = None
    key: str = "corpus"

    @property
    def source(self) -> str:
        """Name of the text, such as `wikitext2/test`."""
        return f"{self.corpus.name}/{self.corpus.split(self.purpose)}"

    def open(self) -> Text:
        """Read the documents."""
        corpus = self.corpus
        with named_as({"corpus.": f"{self.key}."}):
            documents = corpus.read(self.purpose, self.datasets_dir)
        return Text(documents, corpus.separator, corpus.name, self.source, corpus.short_text)

    def read(self, spec: BlockSpec, tokenizer: Any) -> TokenBlocks:
        """Read the documents and cut them into blocks."""
        return self.open().cut(spec, tokenizer)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_copies(copies: int, held_out: int | None) -> None:
    """Reject more copies than held-out blocks, where their number is given."""
    if held_out is not None and copies > held_out:
        raise ConfigError(
            f"calibration.held_out_copies is {copies}, and each is made of another held-out block. "
            f"Allowed: at most calibration.held_out_blocks, which is {held_out}."
        )


def check_disjoint(first: Reader, second: Reader) -> None:
    """Reject two readers that share text.

    Raises:
        ConfigError: both read the same source, and their splits overlap.
    """
    for (source, split), (other, other_split) in product(
        first.corpus.sources(first.purpose), second.corpus.sources(second.purpose)
    ):
        if _text_of(source) == _text_of(other) and overlap(split, other_split):
            raise ConfigError(
                f"{first.purpose} reads {source.name}/{split} and {second.purpose} {other.name}/{other_split}, "
                "which share text. No token may serve two purposes: give one of them another split or corpus."
            )


def _text_of(corpus: Corpus) -> dict[str, Any]:
    """What makes the text of a corpus' splits."""
    return {name: value for name, value in identity(corpus).items() if name not in PURPOSES}
