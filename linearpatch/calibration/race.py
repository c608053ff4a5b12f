"""A race of candidates on held-out tokens: who is worse than the leader beyond noise drops out.

All candidates are measured on the same tokens, so that what makes one text harder than another cancels out in the
difference of two of them. After each block a candidate drops out whose mean difference from the leader exceeds so many
of its standard errors (Maron and Moore 1994: Hoeffding races, here with paired differences). Those that are left have
been measured on all tokens and can't be distinguished from the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from linearpatch.calibration.candidate_losses import CandidateSearch
from linearpatch.models.edit import Edit

PIECE = 64  # tokens whose mean loss is one observation: losses of neighbouring tokens aren't independent


@dataclass(frozen=True)
class Standing:
    """How a candidate stands to the one with the lowest loss.

    Attributes:
        loss: Mean next-token loss: the best one's, and the mean difference from it on the tokens that both were
            measured on. Infinite where a loss isn't finite.
        stderr: Standard error of that difference; 0 for the best one.
        share: The share of the held-out blocks that it was measured on.
        is_contender: Whether it can't be distinguished from the best, even on all of them.
    """

    loss: float
    stderr: float
    share: float
    is_contender: bool


def race(
    search: CandidateSearch, edits: Sequence[Edit], *, noise: float, on_step: Callable[[], None] = lambda: None
) -> list[Standing]:
    """Measure candidates until each is worse than the best beyond noise, or has been measured on all tokens.

    Args:
        search: The held-out tokens and the model whose streams are kept.
        edits: Candidates.
        noise: Standard errors of its difference from the leader by which a candidate drops out.
        on_step: Called as each candidate drops out, and at the end for each that is left.

    Returns:
        One for each edit.
    """
    losses: list[list[Tensor]] = [[] for _ in edits]  # for each edit and block that counts, the means of its pieces
    running = list(range(len(edits)))
    leader = 0
    for batch in range(len(search.batches)):
        measured = {index: search.token_losses(edits[index], batch) for index in running}
        for block in range(len(search.batches[batch])):  # one by one, so that the size of batches doesn't matter
            for index in running:
                losses[index].append(_pieces(measured[index][block]))
            leader = min(running, key=lambda index: (_mean(losses[index]), index))
            left = [
                candidate
                for candidate in running
                if candidate == leader or not _is_behind(losses[candidate], losses[leader], noise)
            ]
            for _ in range(len(running) - len(left)):
                on_step()
            running = left
    for _ in running:
        on_step()
    best = _mean(losses[leader])
    blocks = sum(map(len, search.batches))
    standings = []
    for index, pieces in enumerate(losses):
        difference, stderr = (0.0, 0.0) if index == leader else _difference(pieces, losses[leader])
        standings.append(Standing(best + difference, stderr, len(pieces) / blocks, index in running))
    return standings


def _pieces(token_losses: Tensor) -> Tensor:
    """Mean losses of consecutive pieces of a block, `[tokens]` in; the last piece takes what is left."""
    whole = max(1, len(token_losses) // PIECE)
    return torch.stack([piece.mean() for piece in token_losses.double().tensor_split(whole)]).cpu()


def _mean(losses: Sequence[Tensor]) -> float:
    mean = torch.cat(list(losses)).mean().item()
    return mean if isfinite(mean) else inf


def _difference(losses: Sequence[Tensor], leader: Sequence[Tensor]) -> tuple[float, float]:
    """Mean of the paired differences and its standard error."""
    differences = torch.cat(list(losses)) - torch.cat(list(leader[: len(losses)]))
    if not differences.isfinite().all():
        return inf, 0.0
    error = differences.std(correction=1) / len(differences) ** 0.5 if len(differences) > 1 else torch.tensor(inf)
    return differences.mean().item(), error.item()


def _is_behind(losses: Sequence[Tensor], leader: Sequence[Tensor], noise: float) -> bool:
    difference, stderr = _difference(losses, leader)
    return difference > noise * stderr
