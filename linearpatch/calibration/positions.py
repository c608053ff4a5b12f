"""Which tokens of a block count: not those of long repetitions.

Text may hold thousands of one token in a row: padding that was saved with it, rulers, empty cells. Special tokens draw
massive activations, each a thousand times the usual norm. A few of them, at the start of a block, are part of what a
model does; thousands own every sum of squares and every mean, and what is fitted does nothing for the rest. So what
repeats the tokens before it is left out of statistics, fits and losses. It is still read as context.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

VERSION = 1  # of the rule; raise it when other tokens are left out
LONGEST_PERIOD = 4  # tokens that may be repeated together, such as a special token and a line break
SHORTEST_RUN = 16  # repeated tokens in a row from which on they are left out; text has shorter ones of its own


def informative(ids: Tensor) -> Tensor:
    """Where tokens count: all but those in runs that repeat what is 1 to 4 tokens before.

    >>> informative(torch.tensor([[5, 6, *[0] * 18, 7]])).int().tolist()
    [[1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]

    Args:
        ids: `[blocks, tokens]`.

    Returns:
        `[blocks, tokens]`, bool. The first tokens of a run count: there they are new.
    """
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    for period in range(1, min(LONGEST_PERIOD, ids.shape[1] - 1) + 1):
        matches = functional.pad(ids[:, period:] == ids[:, :-period], (period, 0))
        repeated |= _long_runs(matches)
    return ~repeated


def _long_runs(matches: Tensor) -> Tensor:
    """Those entries that are part of `SHORTEST_RUN` or more in a row."""
    position = torch.arange(1, matches.shape[1] + 1, device=matches.device).expand(matches.shape)
    since_last_gap = position - torch.where(matches, 0, position).cummax(dim=1).values
    backward = torch.where(matches.flip(1), 0, position).cummax(dim=1).values
    until_next_gap = (position - backward).flip(1)
    return matches & (since_last_gap + until_next_gap - 1 >= SHORTEST_RUN)
