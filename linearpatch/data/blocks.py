"""Token blocks: equally long pieces of a text, without padding."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from linearpatch.data.repetitions import NO_REPETITIONS, Repetitions, scale_of, without_repetitions
from linearpatch.errors import DataError, require_choice, require_range
from linearpatch.text import counted

SAMPLINGS = ("first", "windows", "crops", "document_crops")
HELD_OUT_ONE_IN = 8  # for so many blocks, one more is held out to compare fits with no patch
BOS_POLICIES = ("tokenizer", "each", "none")


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


@dataclass(frozen=True)
class SettingNames:
    """Names of the settings that a cut was made of, for errors that say which to change.

    Attributes:
        owner: The section that they are in, such as `calibration`.
        length: That of the tokens in a block.
        held_out: That of the blocks that are held out.
        overlap: The sampling that allows overlap; empty where there is none to choose.
    """

    owner: str = "calibration"
    length: str = "block_length"
    held_out: str = "held_out_blocks"
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
        names: What the settings are called.
    """

    num_blocks: int | None = None
    block_length: int = 2048
    sampling: str = "first"
    bos: str = "tokenizer"
    seed: int = 0
    drop_repetitions: bool = False
    names: SettingNames = field(default=SettingNames(), compare=False)

    def __post_init__(self) -> None:
        require_choice("sampling", self.sampling, SAMPLINGS)
        require_choice("bos", self.bos, BOS_POLICIES)
        require_range("block_length", self.block_length, low=2)
        if self.num_blocks is not None:
            require_range("num_blocks", self.num_blocks, low=1)
        elif self.sampling != "first":
            owner = self.names.owner
            raise DataError(
                f"{owner}.sampling={self.sampling} needs {owner}.num_blocks. Set it; only {owner}.sampling=first can "
                "take all."
            )

    @property
    def advice(self) -> str:
        """What to do where a text is too short."""
        owner, overlap = self.names.owner, self.names.overlap
        allowed = f", allow overlap ({owner}.sampling={overlap})" if overlap else ""
        return (
            f"Ask for fewer blocks ({owner}.num_blocks) or shorter ones ({owner}.{self.names.length}){allowed}, or "
            "choose a longer corpus."
        )

    def fewest_tokens(self, held_out: int = 0) -> int:
        """Tokens that a text must have."""
        if self.sampling == "document_crops":
            return self.block_length
        blocks = 1 if self.sampling == "crops" or self.num_blocks is None else self.num_blocks
        return (blocks + held_out) * (self.block_length - (self.bos == "each"))

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
        body = self.block_length - (self.bos == "each")
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
        body = self.block_length - (self.bos == "each")
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
        blocks = replace(self._cut_tokens(rest, tokenizer, source), repetitions=repetitions)
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
        body = self.block_length - (self.bos == "each")
        blocks = replace(self._cut_tokens(tokens, tokenizer, source), repetitions=repetitions)
        wanted = max(1, len(blocks.ids) // HELD_OUT_ONE_IN)
        taken = torch.zeros(len(tokens) + 1, dtype=torch.bool)
        taken[-1] = True
        taken[self._starts(len(tokens), source)[:, None] + torch.arange(body)] = True
        free: list[int] = []
        first = 0
        for position in taken.nonzero().flatten().tolist():
            free += range(first, position - body + 1, body)
            first = position + 1
        if not free:
            wanted = min(wanted, len(tokens) // body - 1)
            if wanted < 1:
                return blocks, None
            rest, end = tokens[: -wanted * body], tokens[-wanted * body :]
            fewer = self
            if self.num_blocks is not None and self.sampling != "crops":
                fewer = replace(self, num_blocks=min(self.num_blocks, len(rest) // body))
            blocks = replace(fewer._cut_tokens(rest, tokenizer, source), repetitions=repetitions)
            tokens, free = end, list(range(0, len(end), body))
        held_out = tokens[torch.tensor(free[-wanted:])[:, None] + torch.arange(body)]
        return blocks, TokenBlocks(self._with_bos(held_out, tokenizer), f"{source}, held out")

    def _cut(self, text: str, tokenizer: Any, source: str) -> TokenBlocks:
        tokens, repetitions = self._tokens(text, tokenizer)
        return replace(self._cut_tokens(tokens, tokenizer, source), repetitions=repetitions)

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
        body = self.block_length - (self.bos == "each")
        starts = self._starts(len(tokens), source)
        blocks = self._with_bos(tokens[starts[:, None] + torch.arange(body)], tokenizer)
        return TokenBlocks(blocks, source, len(tokens))

    def _starts(self, num_tokens: int, source: str) -> Tensor:
        """Where blocks begin in a text of so many tokens."""
        body = self.block_length - (self.bos == "each")
        available = num_tokens // body
        wanted = available if self.num_blocks is None else self.num_blocks
        crops = self.sampling == "crops"
        if available == 0 or (wanted > available and not crops):
            raise DataError(
                f"{source} has {num_tokens:,} tokens: {counted(available, 'block')} of {self.block_length}, "
                f"{'1' if self.num_blocks is None else wanted} needed. {self.advice}"
            )
        if crops:
            return torch.randint(num_tokens - body + 1, (wanted,), generator=self._generator())
        if self.sampling == "windows":
            return torch.randperm(available, generator=self._generator())[:wanted].sort().values * body
        return torch.arange(wanted) * body

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
