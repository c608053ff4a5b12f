"""Token blocks: equally long pieces of a text, without padding."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from linearpatch.data.repetitions import NO_REPETITIONS, Repetitions, scale_of, without_repetitions
from linearpatch.errors import ConfigError, DataError, require_choice, require_range
from linearpatch.text import counted

SAMPLINGS = ("first", "windows", "crops", "document_crops")
HELD_OUT_ONE_IN = 8  # for so many blocks, one more is held out to compare fits with no patch
BOS_POLICIES = ("tokenizer", "each", "none")
SHORT_TEXT = ("error", "adapt")
FEWEST_BLOCKS = 4  # that a short text is cut into, those held out included, before the blocks become shorter …
SHORTEST_BLOCK = 32  # … but not shorter than this
MOST_READINGS = 4  # of each token by crops that overlap; more are warned of


@dataclass(frozen=True)
class TokenBlocks:
    """Blocks of tokens and where they came from.

    Attributes:
        ids: `[blocks, tokens]` int64.
        source: What the text is, such as `pydoc/calibration`.
        available: Tokens of the text that they were cut from, where that was counted.
        repetitions: What was left out of that text before.
    """

    ids: Tensor
    source: str
    available: int | None = None
    repetitions: Repetitions = NO_REPETITIONS

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the token stream: equal for equal tokens in equal blocks, whatever their source."""
        return token_hash(self.ids)

    def part(self, share: float) -> TokenBlocks:
        """The first of them: this share, and at least one."""
        return replace(self, ids=self.ids[: max(1, round(share * len(self.ids)))])

    def with_copies(self, number: int) -> TokenBlocks:
        """The same with more blocks, in which the beginning of one of them stands twice.

        A model that reads its context predicts the second time almost without loss, and one that lost the layers that
        do so no better than the first time: plain text hardly tells them apart.

        Args:
            number: Of blocks more; of fewer blocks, one for each. They stand among the others, each after its own.
        """
        count, length = self.ids.shape
        number = min(number, count)
        sources = [index * count // number for index in range(number)]
        first, passage = self.ids[sources, :1], self.ids[sources, 1 : max(2, (length + 1) // 2)]
        copies = torch.cat([first, passage.repeat(1, 3)], dim=1)[:, :length]
        order = torch.tensor([*range(count), *sources]).argsort(stable=True)  # each copy after its source
        return replace(self, ids=torch.cat([self.ids, copies])[order])


@dataclass(frozen=True)
class SettingNames:
    """Names of the settings that a cut was made of, for errors that say which to change.

    Attributes:
        owner: The section that they are in, such as `calibration`.
        length: That of the tokens in a block.
        held_out: That of the blocks that are held out.
        number: That of the number of blocks.
        overlap: The sampling that allows overlap; empty where there is none to choose.
    """

    owner: str = "calibration"
    length: str = "block_length"
    held_out: str = "held_out_blocks"
    number: str = "num_blocks"
    overlap: str = "crops"


@dataclass(frozen=True)
class BlockSpec:
    """How a text becomes blocks.

    Attributes:
        num_blocks: How many; None takes all disjoint windows.
        block_length: Tokens in each.
        sampling: `first` takes the first disjoint windows, `windows` a seeded choice of them, `crops`
            seeded random positions that may overlap (as 5,000 sequences of 2.7 million tokens must),
            `document_crops` seeded random places in random documents that are long enough (GPTQ's C4).
        bos: `tokenizer` adds to the joined text what the tokenizer adds to any text, `each` starts every
            block with BOS, `none` adds nothing.
        seed: Of the choice; unused by `first`.
        drop_repetitions: Whether long repetitions are left out of the text before it is cut (`data.repetitions`):
            for text that is fitted or trained on, never for text that is evaluated on.
        short_text: What happens where the text is too short: `error`, or `adapt`, which cuts fewer and then shorter
            blocks.
        names: What the settings are called.
    """

    num_blocks: int | None = None
    block_length: int = 2048
    sampling: str = "first"
    bos: str = "tokenizer"
    seed: int = 0
    drop_repetitions: bool = False
    short_text: str = "error"
    names: SettingNames = field(default=SettingNames(), compare=False)

    def __post_init__(self) -> None:
        require_choice("short_text", self.short_text, SHORT_TEXT)
        require_choice("sampling", self.sampling, SAMPLINGS)
        require_choice("bos", self.bos, BOS_POLICIES)
        require_range("block_length", self.block_length, low=2)
        if self.num_blocks is not None:
            require_range("num_blocks", self.num_blocks, low=1)
        elif self.sampling != "first":
            owner = self.names.owner
            raise DataError(
                f"{owner}.sampling={self.sampling} needs {owner}.{self.names.number}. Set it; only "
                f"{owner}.sampling=first can take all."
            )

    def check_length(self, longest: int) -> None:
        """Reject blocks that are longer than the tokens that a model reads.

        Raises:
            ConfigError: names the setting.
        """
        if self.block_length > longest:
            raise ConfigError(
                f"{self.names.owner}.{self.names.length} is {self.block_length:,}, and the model reads {longest:,} "
                f"tokens (max_position_embeddings of its configuration). Set it to at most {longest}."
            )

    def advice(self, num_tokens: float) -> str:
        """What to do where a text of so many tokens is too short."""
        owner, overlap = self.names.owner, self.names.overlap
        if num_tokens < self._body:  # not one block, however few or overlapping
            return f"Ask for shorter blocks ({owner}.{self.names.length}), or choose a longer corpus."
        allowed = f", allow overlap ({owner}.sampling={overlap})" if overlap and self.sampling != "crops" else ""
        return (
            f"Ask for fewer blocks ({owner}.{self.names.number}) or shorter ones "
            f"({owner}.{self.names.length}){allowed}, or choose a longer corpus."
        )

    def fewest_tokens(self, held_out: int = 0) -> int:
        """Tokens that a text must have."""
        if self.sampling == "document_crops":
            return self.block_length
        if self.short_text == "adapt":
            return min(self.block_length, SHORTEST_BLOCK) * FEWEST_BLOCKS
        return self._num_needed(held_out) * self._body

    def most_tokens(self, held_out: int | None = 0) -> int | None:
        """Tokens of a text that are read; None: all that it has.

        Args:
            held_out: Blocks that are held out; None: as many as `cut_beside` holds out.
        """
        if self.num_blocks is None:
            return None
        spared = math.ceil(self.num_blocks / HELD_OUT_ONE_IN) if held_out is None else held_out
        return (self.num_blocks + spared) * self.block_length

    def adapted(self, num_tokens: int, held_out: int = 0) -> tuple[BlockSpec, int]:
        """The cut and the number of held-out blocks that a text of so many tokens allows.

        Unchanged where the text is long enough, and with `short_text=error`. Else the blocks become fewer, in the
        same proportion to those held out, of which at least one for eight stays; where that would leave fewer than
        four, they become shorter first.
        """
        is_enough = num_tokens >= self._num_needed(held_out) * self._body
        if is_enough or self.short_text == "error" or self.sampling == "document_crops":
            return self, held_out
        shorter = self
        while num_tokens // shorter._body < FEWEST_BLOCKS and shorter.block_length >= 2 * SHORTEST_BLOCK:
            shorter = replace(shorter, block_length=shorter.block_length // 2)
        available = num_tokens // shorter._body
        if self.num_blocks is None:
            return shorter, min(held_out, max(1, available // FEWEST_BLOCKS))
        if held_out:
            in_proportion = round(available * held_out / (self.num_blocks + held_out))
            held_out = max(1, in_proportion, min(held_out, available // HELD_OUT_ONE_IN))
        readings = MOST_READINGS if self.sampling == "crops" else 1
        num_blocks = max(1, min(self.num_blocks, readings * (available - held_out)))
        return replace(shorter, num_blocks=num_blocks), held_out

    def shortage(self, blocks: TokenBlocks) -> str | None:
        """What a short text gave in place of what was asked for, in words; None where it gave all of it."""
        number, length = blocks.ids.shape
        if length == self.block_length and number >= (self.num_blocks or 0):
            return None
        asked = f"blocks of {self.block_length:,} tokens"
        owner = self.names.owner
        return (
            f"{blocks.available or blocks.ids.numel():,} tokens are too few for "
            f"{f'{self.num_blocks:,} {asked}' if self.num_blocks else asked} ({owner}.{self.names.number}, "
            f"{owner}.{self.names.length}): {counted(number, 'block')} of {length:,} instead"
        )

    def cut(self, documents: Sequence[str], separator: str, tokenizer: Any, source: str) -> TokenBlocks:
        """Tokenise documents, joined to one text or each for itself, and cut them.

        Raises:
            DataError: they are empty or can't give so many blocks.
        """
        if self.sampling == "document_crops":
            return self._crop(documents, tokenizer, source)
        return self._cut(separator.join(documents), tokenizer, source)

    def _crop(self, documents: Sequence[str], tokenizer: Any, source: str) -> TokenBlocks:
        """Crops of random documents, drawn in the order and with the generator of GPTQ's protocol."""
        generator = random.Random(self.seed)
        body = self._body
        crops: list[Tensor] = []
        misses = 0
        while len(crops) < (self.num_blocks or 0):
            document = documents[generator.randint(0, len(documents) - 1)] if documents else ""
            tokens, _ = self._encode(document, tokenizer, self.bos == "tokenizer")
            if len(tokens) <= body:
                misses += 1
                if misses > 100 * max(len(documents), 100):
                    raise DataError(
                        f"{source} has no document of more than {body} tokens. Ask for shorter blocks "
                        f"({self.names.owner}.{self.names.length}), or join the documents "
                        f"({self.names.owner}.sampling=first)."
                    )
                continue
            start = generator.randint(0, len(tokens) - body - 1)
            crops.append(tokens[start : start + body])
        return TokenBlocks(self._with_bos(torch.stack(crops), tokenizer), source)

    def cut_apart(
        self, documents: Sequence[str], separator: str, tokenizer: Any, source: str, held_out: int
    ) -> tuple[TokenBlocks, TokenBlocks]:
        """Cut all but the end of the joined documents, and the end into disjoint blocks that are held out.

        Args:
            documents: The texts.
            separator: Joins them.
            tokenizer: Of the model.
            source: Name of the text.
            held_out: Number of blocks at the end; no token of theirs is in the other blocks.

        Raises:
            DataError: they can't give so many blocks, or aren't joined.
        """
        if self.sampling == "document_crops":
            raise DataError(
                f"{source}: {self.names.owner}.sampling=document_crops draws from every document, so that no end of "
                f"the text can be held out. Use {self.names.owner}.sampling=crops, or windows."
            )
        tokens, repetitions = self._tokens(separator.join(documents), tokenizer)
        spec, held_out = self.adapted(len(tokens), held_out)
        blocks, kept = spec._apart(tokens, tokenizer, source, held_out)
        return replace(blocks, repetitions=repetitions), kept

    def _apart(self, tokens: Tensor, tokenizer: Any, source: str, held_out: int) -> tuple[TokenBlocks, TokenBlocks]:
        body = self._body
        if len(tokens) < (held_out + 1) * body:
            raise DataError(
                f"{source} has {len(tokens):,} tokens: too few for {counted(held_out, 'block')} of "
                f"{self.block_length} that are held out and at least one more. Hold fewer out "
                f"({self.names.owner}.{self.names.held_out}), use shorter blocks "
                f"({self.names.owner}.{self.names.length}={max(2, self.block_length // 2)}), or read more "
                f"text: corpus=NAME, or for this purpose alone corpus@{self.names.owner}.corpus=NAME."
            )
        rest, end = tokens[: -held_out * body], tokens[-held_out * body :]
        validation = BlockSpec(held_out, self.block_length, "first", self.bos, names=self.names)
        blocks = self._cut_tokens(rest, tokenizer, source)
        return blocks, validation._cut_tokens(end, tokenizer, f"{source}, held out")

    def cut_beside(
        self, documents: Sequence[str], separator: str, tokenizer: Any, source: str
    ) -> tuple[TokenBlocks, TokenBlocks | None]:
        """What `cut` gives, and for eight blocks of that a held-out one, of tokens that are in none of them.

        They are the last of the text that `cut` leaves. Where it leaves none, the end of the text is held out as by
        `cut_apart`, so that the others are fewer or come from elsewhere; a text of a single block has none to spare.
        """
        if self.sampling == "document_crops":
            return self._crop(documents, tokenizer, source), None
        tokens, repetitions = self._tokens(separator.join(documents), tokenizer)
        spec, _ = self.adapted(len(tokens))
        blocks, held_out = spec._beside(tokens, tokenizer, source)
        return replace(blocks, repetitions=repetitions), held_out

    def _beside(self, tokens: Tensor, tokenizer: Any, source: str) -> tuple[TokenBlocks, TokenBlocks | None]:
        body = self._body
        blocks = self._cut_tokens(tokens, tokenizer, source)
        number = max(1, len(blocks.ids) // HELD_OUT_ONE_IN)
        taken = torch.zeros(len(tokens) + 1, dtype=torch.bool)
        taken[-1] = True
        taken[self._starts(len(tokens), source)[:, None] + torch.arange(body)] = True
        free: list[int] = []
        first = 0
        for position in taken.nonzero().flatten().tolist():
            free += range(first, position - body + 1, body)
            first = position + 1
        if not free:
            number = min(number, len(tokens) // body - 1)
            if number < 1:
                return blocks, None
            rest, end = tokens[: -number * body], tokens[-number * body :]
            fewer = self
            if self.num_blocks is not None and self.sampling != "crops":
                fewer = replace(self, num_blocks=min(self.num_blocks, len(rest) // body))
            blocks = fewer._cut_tokens(rest, tokenizer, source)
            tokens, free = end, list(range(0, len(end), body))
        held_out = tokens[torch.tensor(free[-number:])[:, None] + torch.arange(body)]
        return blocks, TokenBlocks(self._with_bos(held_out, tokenizer), f"{source}, held out")

    @property
    def _body(self) -> int:
        """Tokens of the text in a block."""
        return self.block_length - (self.bos == "each")

    def _num_needed(self, held_out: int) -> int:
        """Blocks that a text must have; crops overlap, so that one gives any number of them."""
        return held_out + (1 if self.sampling == "crops" or self.num_blocks is None else self.num_blocks)

    def _cut(self, text: str, tokenizer: Any, source: str) -> TokenBlocks:
        tokens, repetitions = self._tokens(text, tokenizer)
        spec, _ = self.adapted(len(tokens))
        return replace(spec._cut_tokens(tokens, tokenizer, source), repetitions=repetitions)

    def _tokens(self, text: str, tokenizer: Any) -> tuple[Tensor, Repetitions]:
        own = getattr(tokenizer, "bos_token", None)
        has_own = own is not None and text.startswith(own)  # as chat templates write it
        special = self.bos == "tokenizer" and not has_own
        return self._encode(text, tokenizer, special)

    def _encode(self, text: str, tokenizer: Any, special: bool) -> tuple[Tensor, Repetitions]:
        tokens = torch.tensor(tokenizer(text, add_special_tokens=special, verbose=False).input_ids, dtype=torch.long)
        if not self.drop_repetitions:
            return tokens, NO_REPETITIONS
        return without_repetitions(tokens, scale_of(tokenizer))

    def _cut_tokens(self, tokens: Tensor, tokenizer: Any, source: str) -> TokenBlocks:
        body = self._body
        starts = self._starts(len(tokens), source)
        blocks = self._with_bos(tokens[starts[:, None] + torch.arange(body)], tokenizer)
        return TokenBlocks(blocks, source, len(tokens))

    def _starts(self, num_tokens: int, source: str) -> Tensor:
        """Where blocks begin in a text of so many tokens."""
        body = self._body
        available = num_tokens // body
        number = available if self.num_blocks is None else self.num_blocks
        crops = self.sampling == "crops"
        if available == 0 and self.short_text == "adapt":  # the blocks were made as short as they may be
            raise DataError(f"{source} has {num_tokens:,} tokens: too few for one block of {body}. Use a longer text.")
        if available == 0 or (number > available and not crops):
            raise DataError(
                f"{source} has {num_tokens:,} tokens: {counted(available, 'block')} of {self.block_length}, "
                f"{'1' if self.num_blocks is None else number} needed. {self.advice(num_tokens)}"
            )
        if crops:
            return torch.randint(num_tokens - body + 1, (number,), generator=self._generator())
        if self.sampling == "windows":
            return torch.randperm(available, generator=self._generator())[:number].sort().values * body
        return torch.arange(number) * body

    def _with_bos(self, ids: Tensor, tokenizer: Any) -> Tensor:
        if self.bos != "each":
            return ids
        return torch.cat([torch.full((len(ids), 1), self._bos_id(tokenizer)), ids], dim=1)

    def _bos_id(self, tokenizer: Any) -> int:
        if tokenizer.bos_token_id is None:
            raise DataError(
                f"{self.names.owner}.bos=each needs a tokenizer with a BOS token, and this one has none. Use "
                f"{self.names.owner}.bos=none."
            )
        return int(tokenizer.bos_token_id)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def token_hash(ids: Tensor) -> str:
    """SHA-256 of token blocks, shape included, 16 hexadecimal digits."""
    content = ids.contiguous().numpy().tobytes()
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + content).hexdigest()[:16]
