"""Long repetitions in a text, which are left out of what is calibrated and trained on.

Text may hold thousands of one token in a row: padding that was saved with it, rulers, empty cells. They teach nothing,
and a special token among them may have a thousand times the usual norm, so that a few own every sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LONGEST_PERIOD = 4  # tokens that may be repeated together, such as a special token and a line break
SHORTEST_RUN = 16  # repeated tokens in a row from which on they are left out; text has shorter runs of its own
LEAST_VOCABULARY = 1_000  # a smaller one is of characters or bytes
CHARACTERS = 8  # in place of one token there, at most


@dataclass(frozen=True)
class Repetitions:
    """Tokens that were left out of a text.

    Attributes:
        count: How many.
        total: Tokens of the text with them.
        token: The most frequent among them; None where there are none.
    """

    count: int = 0
    total: int = 0
    token: int | None = None

    @property
    def share(self) -> float:
        """The share of the text that was left out."""
        return self.count / self.total if self.total else 0.0


NO_REPETITIONS = Repetitions()


def scale_of(tokenizer: Any) -> int:
    """How many of a tokenizer's tokens stand for as much text as one of an ordinary vocabulary."""
    return 1 if len(tokenizer) >= LEAST_VOCABULARY else CHARACTERS


def without_repetitions(tokens: Tensor, scale: int = 1) -> tuple[Tensor, Repetitions]:
    """A text without the tokens that `repeats` finds, and what they were.

    Args:
        tokens: `[tokens]`.
        scale: Of the tokenizer, `scale_of`.
    """
    repeated = repeats(tokens, scale * SHORTEST_RUN)
    left_out = tokens[repeated]
    token = int(left_out.mode().values) if len(left_out) else None
    return tokens[~repeated], Repetitions(len(left_out), len(tokens), token)


def repeats(tokens: Tensor, shortest_run: int = SHORTEST_RUN) -> Tensor:
    """Where tokens are part of a long run that repeats what is 1 to 4 tokens before.

    >>> repeats(torch.tensor([5, 6, *[0] * 18, 7])).int().tolist()
    [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]

    Args:
        tokens: `[tokens]`.
        shortest_run: Repeated tokens in a row.

    Returns:
        `[tokens]`, bool. The first tokens of a run are no repetition.
    """
    repeated = torch.zeros_like(tokens, dtype=torch.bool)
    for period in range(1, min(LONGEST_PERIOD, len(tokens) - 1) + 1):
        matches = functional.pad(tokens[period:] == tokens[:-period], (period, 0))
        repeated |= _long_runs(matches, shortest_run)
    return repeated


def _long_runs(matches: Tensor, shortest: int) -> Tensor:
    """Those entries that are part of so many or more in a row."""
    position = torch.arange(1, len(matches) + 1)
    since_last_break = position - torch.where(matches, 0, position).cummax(dim=0).values
    backward = torch.where(matches.flip(0), 0, position).cummax(dim=0).values
    until_next_break = (position - backward).flip(0)
    return matches & (since_last_break + until_next_break - 1 >= shortest)
