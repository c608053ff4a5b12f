"""Tokens that a model is pruned, patched and trained with: `linearpatch.tokens`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from linearpatch.data.blocks import BlockSpec, SettingNames, TokenBlocks
from linearpatch.data.in_memory import corpus_of
from linearpatch.data.reader import Reader, check_copies
from linearpatch.errors import named_as, require_range, require_tokenizer, require_whole
from linearpatch.storage.cache import Cache
from linearpatch.text import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Tokens to choose layers, fit patches and train with.

    Attributes:
        blocks: What is fitted and trained on.
        held_out: Other tokens of the same text, on which choices are made and patches compared with none; None where
            the text has none to spare.
    """

    blocks: TokenBlocks
    held_out: TokenBlocks | None = None
    cache: Cache = field(default_factory=Cache, repr=False, compare=False)  # what was learnt from them, in memory

    def __repr__(self) -> str:
        number, length = self.blocks.ids.shape
        spare = 0 if self.held_out is None else len(self.held_out.ids)
        return f"Tokens({counted(number, 'block')} of {length:,}, {spare} held out, from {self.blocks.source})"


@named_as({"corpus.": "", "calibration.held_out_copies": "copies", "calibration.held_out_blocks": "held_out"})
def tokens(
    text: str | Path | Sequence[Any] | Any,
    tokenizer: Any,
    blocks: int | None = 40,
    length: int = 1024,
    *,
    held_out: int | None = None,
    copies: int = 0,
    column: str = "text",
    sampling: str = "windows",
    bos: str = "tokenizer",
    seed: int = 0,
) -> Tokens:
    """Cut a text into blocks of tokens; a short one gives fewer and then shorter blocks, and a warning.

    Args:
        text: A file or folder, a list of texts or chats (lists of `role` and `content`), or a `datasets.Dataset`.
        tokenizer: Of the model.
        blocks: How many; None takes all that there are (with `sampling="first"`).
        length: Tokens in each.
        held_out: How many more blocks are held out, at the end of the text. None: an eighth as many as `blocks`, of
            text that the others leave. 0: none.
        copies: So many more among those held out, in which a passage of one of them stands twice: what is chosen on
            them then keeps what lets a model copy from its context.
        column: Of the text, where there are columns.
        sampling: `windows`, `first` or `crops`; see `BlockSpec`.
        bos: `tokenizer`, `each` or `none`; see `BlockSpec`.
        seed: Of the sampling.

    Raises:
        DataError: there is next to no text, or it isn't text.
        ConfigError: a number is out of its range, or there are more copies than held-out blocks.
    """
    counts = {"blocks": blocks, "length": length, "held_out": held_out, "copies": copies, "seed": seed}
    for setting, value in counts.items():
        if value is not None or setting in ("length", "copies", "seed"):
            require_whole(setting, value)
            require_range(setting, value or 0, low={"blocks": 1, "length": 2}.get(setting, 0))
    check_copies(copies, held_out)
    require_tokenizer(tokenizer)
    names = SettingNames("tokens", "length", "held_out", "blocks")
    spec = BlockSpec(blocks, length, sampling if blocks is not None else "first", bos, seed, True, names=names)
    opened = Reader(corpus_of(text, column), "calibration").open()
    if held_out:
        cut = Tokens(*opened.cut_apart(spec, tokenizer, held_out))
    elif held_out == 0:
        cut = Tokens(opened.cut(spec, tokenizer))
    else:
        cut = Tokens(*opened.cut_beside(spec, tokenizer))
    available = 0 if cut.held_out is None else len(cut.held_out.ids)
    if copies > available:
        log.warning(
            "copies is %d, and %s held out, of which each has one. Give held_out=%d for more.",
            copies, counted(available, "block"), copies,
        )  # fmt: skip
    if copies and cut.held_out is not None:
        cut = replace(cut, held_out=cut.held_out.with_copies(copies))
    for doubt in opened.warnings(cut.blocks, spec, tokenizer):
        log.warning("%s", doubt)
    return cut
