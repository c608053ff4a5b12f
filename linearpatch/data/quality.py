"""A look at calibration text before anything is fitted on it.

Thresholds stand above what clean text has in every cut (WikiText-2 and Python's documentation with SmolLM2's
tokenizer; the tests measure them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from linearpatch.data.blocks import MOST_READINGS, BlockSpec, TokenBlocks
from linearpatch.data.repetitions import scale_of, without_repetitions
from linearpatch.text import counted

MOST_REPETITIONS = 0.01  # of the tokens
MOST_OF_ONE_TOKEN = 0.4  # of the tokens
PASSAGE = 32  # tokens, fewer in shorter blocks
LEAST_PASSAGE = 16
MOST_REPEATED_PASSAGES = 0.2
MOST_DUPLICATES = 0.1  # of the characters, in documents that occurred before
MOST_SPACE = 0.75  # of the characters
MOST_UNKNOWN = 0.05  # of the tokens
MOST_TOKENS_PER_WORD = 4.0
MOST_TOKENS_PER_CHARACTER = 1.2  # in languages without spaces; more are pieces of characters
LONGEST_WORD = 15  # characters on average, above which words aren't parted by spaces
SAMPLE = 100_000  # characters and as many tokens times ten are looked at


def text_warnings(blocks: TokenBlocks, texts: Sequence[str], spec: BlockSpec, tokenizer: Any) -> list[str]:
    """What is wrong with a calibration text, in sentences with figures; nothing where it is ordinary.

    Args:
        blocks: The tokens that are read.
        texts: The documents that they were cut from.
        spec: How.
        tokenizer: Of the model.
    """
    ids = blocks.ids[: max(1, 10 * SAMPLE // blocks.ids.shape[1])]
    doubts = [
        *_shortage(blocks, spec),
        *_repetitions(blocks, tokenizer),
        *_repeats(ids, spec, PASSAGE * scale_of(tokenizer)),
        *_documents(texts),
        *_readings(blocks),
        *_tokenization(texts, tokenizer),
    ]
    return [f"calibration text {blocks.source}: {doubt}" for doubt in doubts]


def _shortage(blocks: TokenBlocks, spec: BlockSpec) -> Iterator[str]:
    """Less text than was asked for."""
    shortage = spec.shortage(blocks)
    if shortage:
        yield f"{shortage}. Results on so little text are less reliable: add text like that which the model will see."


def _repetitions(blocks: TokenBlocks, tokenizer: Any) -> Iterator[str]:
    """One token again and again."""
    repetitions = blocks.repetitions
    if repetitions.share > MOST_REPETITIONS and repetitions.token is not None:
        yield (
            f"{repetitions.count:,} of its {repetitions.total:,} tokens ({repetitions.share:.0%}) only repeat the "
            f"tokens before them, most of them {_name(repetitions.token, tokenizer)}. They are left out. Padding that "
            "was saved with the text looks like this: remove it, and make sure that what is left is what you meant to "
            "read."
        )
    tokens, counts = blocks.ids.unique(return_counts=True)
    share = float(counts.max()) / blocks.ids.numel()
    if share > MOST_OF_ONE_TOKEN:
        yield f"{share:.0%} of its tokens are {_name(int(tokens[counts.argmax()]), tokenizer)}. Choose other text."


def _repeats(ids: Tensor, spec: BlockSpec, length: int) -> Iterator[str]:
    """Passages that occur again; crops overlap, so that only repeats within one block count."""
    is_disjoint = spec.sampling in ("first", "windows")
    while length > ids.shape[1] // 2:
        length //= 2
    if length < LEAST_PASSAGE:
        return
    share = repeated_share(ids, length, across=is_disjoint)
    if share > MOST_REPEATED_PASSAGES:
        yield (
            f"{share:.0%} of its passages of {length} tokens occurred before. Copies, boilerplate or generated rows "
            "count as often as they occur: keep one of each."
        )


def _documents(texts: Sequence[str]) -> Iterator[str]:
    """Documents that are few, alike or blank."""
    filled = [text.strip() for text in texts if text.strip()]
    characters = sum(map(len, filled))
    if len(filled) == 1:
        yield (
            f"it is a single document ({counted(characters, 'character')}). A fit on it may not generalise: add "
            "documents of the kinds that the model will see."
        )
    copies = characters - sum(map(len, set(filled)))
    if copies > MOST_DUPLICATES * characters:
        number = len(filled) - len(set(filled))
        yield (
            f"{number:,} of {counted(len(filled), 'document')} are copies of others ({copies / characters:.0%} of the "
            "text). They count as often as they occur: keep one of each."
        )
    total = sum(map(len, texts))
    space = sum(len(text) - len("".join(text.split())) for text in texts)
    if total and space > MOST_SPACE * total:
        yield f"{space / total:.0%} of its characters are white space. Remove it, or choose other text."


def _readings(blocks: TokenBlocks) -> Iterator[str]:
    """Crops of a text that is too short for them."""
    if blocks.available and blocks.ids.numel() > MOST_READINGS * blocks.available:
        yield (
            f"it has {blocks.available:,} tokens, and {len(blocks.ids):,} blocks of {blocks.ids.shape[1]:,} read each "
            f"{blocks.ids.numel() / blocks.available:.0f} times. Use longer text, or fewer blocks "
            "(calibration.num_blocks)."
        )


def _tokenization(texts: Sequence[str], tokenizer: Any) -> Iterator[str]:
    """A language or notation that the tokenizer doesn't know."""
    sample = _sample(texts)
    if not sample.strip() or scale_of(tokenizer) > 1:
        return
    ids = torch.tensor(tokenizer(sample, add_special_tokens=False, verbose=False).input_ids)
    kept, left_out = without_repetitions(ids)
    tokens = kept.tolist()
    words = (tokenizer.decode(tokens) if left_out.count else sample).split()
    characters = sum(map(len, words))
    per_word, per_character = len(tokens) / len(words), len(tokens) / characters
    shreds = per_character > MOST_TOKENS_PER_CHARACTER
    if characters <= LONGEST_WORD * len(words):
        shreds |= per_word > MOST_TOKENS_PER_WORD
    unknown = tokens.count(tokenizer.unk_token_id) / len(tokens) if tokenizer.unk_token_id is not None else 0.0
    if shreds or unknown > MOST_UNKNOWN:
        unknowns = f", {unknown:.0%} of them unknown" if unknown > MOST_UNKNOWN else ""
        yield (
            f"the tokenizer makes {per_word:.1f} tokens of a word and {per_character:.2f} of a character{unknowns} "
            "(about 1.3 and 0.3 for a language it was trained on). The model has hardly seen such text, and a fit on "
            "it may not generalise: calibrate on text of the kind that the model will see."
        )


def repeated_share(ids: Tensor, length: int, *, across: bool) -> float:
    """Share of the passages of blocks that occurred before, those of one token alone left out.

    Args:
        ids: `[blocks, tokens]`.
        length: Tokens of a passage, a power of two.
        across: Whether to compare blocks with each other, beside each with itself.
    """
    if ids.shape[1] < length:
        return 0.0
    hashes, factor = ids + 1, 6364136223846793005  # a rolling polynomial, modulo 2^64
    reach = 1
    while reach < length:
        hashes = hashes[:, :-reach] * factor + hashes[:, reach:]
        factor = (factor * factor + 2**63) % 2**64 - 2**63
        reach *= 2
    starts = ids.unfold(1, length, 1)
    varied = starts.amin(dim=2) != starts.amax(dim=2)
    passages = [row[is_varied] for row, is_varied in zip(hashes, varied, strict=True)]
    groups = [torch.cat(passages)] if across else passages
    total = sum(len(group) for group in groups)
    return 1 - sum(len(group.unique()) for group in groups) / total if total else 0.0


def _sample(texts: Sequence[str]) -> str:
    taken: list[str] = []
    room = SAMPLE
    for text in texts:
        if room <= 0:
            break
        taken.append(text[:room])
        room -= len(text)
    return "\n".join(taken)


def _name(token: int, tokenizer: Any) -> str:
    """A token as it may stand in a line."""
    return repr(str(tokenizer.decode([token])))
