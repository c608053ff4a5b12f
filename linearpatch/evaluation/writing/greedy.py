"""What a model writes after prompts, always the likeliest token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from linearpatch.models.decoder import Decoder
from linearpatch.models.sampling import Sampling, continuations, rows_that_fit
from linearpatch.runtime.memory import BatchSize

MOST_TOKENS = 2**14  # of the prompts that are read together
GREEDY = Sampling(temperature=0)
OnStep = Callable[[float], object]


def greedy_texts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    num_tokens: int,
    stop: Sequence[int],
    batch_size: int | str,
    owner: str,
    on_step: OnStep = lambda count: None,
) -> list[list[int]]:
    """What a model writes after each prompt, always the likeliest token.

    Args:
        decoder: Any model or view.
        prompts: Tokens.
        num_tokens: At most so many are written.
        stop: Tokens that end an answer.
        batch_size: Prompts at a time; `auto` takes as many as fit into memory.
        owner: The section of the configuration that `batch_size` is in, for errors.
        on_step: Called with the number of prompts done.
    """
    length = max(map(len, prompts)) + num_tokens
    first = max(1, min(rows_that_fit(decoder, length), MOST_TOKENS // length))
    rows = BatchSize(batch_size, decoder.input_device.type, owner, first=first, length="num_tokens")
    answers: list[list[int]] = []
    for _, batch in rows.over(
        prompts,
        lambda part: continuations(decoder, part, None, GREEDY, num_tokens=num_tokens, stop=stop, on_step=on_step),
    ):
        answers += batch
    return answers


def stop_tokens(tokenizer: Any, *, line: bool = False) -> list[int]:
    """The tokens that end an answer: EOS and, with `line`, the end of a line where that is a token."""
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    return ends + (list(newline) if line and len(newline) == 1 else [])
