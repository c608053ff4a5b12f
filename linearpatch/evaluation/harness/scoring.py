"""Log-likelihoods of continuations, reading what requests have in common once.

The choices of a question share the question, the questions of a few-shot task its examples. Rows that begin alike form
a group; a model reads the beginnings of some groups into a key-value cache, then continues each with its rows. Nothing
is padded on the left and no position is shifted, so every family computes what it would compute row by row, up to
rounding. Logits are made only where a continuation is predicted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import LOGIT_BYTES
from linearpatch.runtime.memory import BatchSize

Request = tuple[Sequence[int], Sequence[int]]  # tokens of the context, tokens of the continuation
Score = tuple[float, bool]  # log-likelihood of the continuation, and whether greedy decoding gives it

# Two passes cost more than one over as many tokens: beginnings are shared where that leaves at most this share.
WORTHWHILE = 0.9
# Beginnings of about the same length are read together, cut to the shortest: this share of the longest at least.
SIMILAR = 0.9


@dataclass(frozen=True)
class Row:
    """Tokens that a model reads to score one or more requests.

    Attributes:
        tokens: Context and continuation without its last token.
        requests: Indices of the requests that they serve.
        predicts: The first token from which something is predicted.
    """

    tokens: tuple[int, ...]
    requests: tuple[int, ...]
    predicts: int


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens.

    Attributes:
        rows: The rows.
        common: How many first tokens they share, none of which predicts anything that is asked.
    """

    rows: tuple[Row, ...]
    common: int


def score(
    decoder: Decoder,
    requests: Sequence[Request],
    *,
    batch_size: BatchSize,
    max_length: int,
    share: bool = True,
    on_requests: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Score every request.

    Args:
        decoder: Any model or view.
        requests: Contexts and continuations of at least one token each.
        batch_size: Sequences in one forward pass.
        max_length: Longer sequences lose their first tokens.
        share: Read common beginnings once.
        on_requests: Called after each pass with the number of requests that it scored.

    Returns:
        Natural logarithms and greedy matches, in the order of the requests.
    """
    scores: list[Score] = [(0.0, False)] * len(requests)
    rows = rows_of(requests, max_length)
    groups = group(rows) if share else [Group((row,), 0) for row in rows]
    for batch, hidden, offset in _read(decoder, groups, batch_size):
        batch_scores = _score_batch(decoder, batch, hidden, offset, requests)
        for index, value in batch_scores.items():
            scores[index] = value
        on_requests(len(batch_scores))
    return scores


def rows_of(requests: Sequence[Request], max_length: int) -> list[Row]:
    """One row for each distinct sequence; continuations of one token share that of their context."""
    served: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        tokens = (*context, *continuation)
        served.setdefault(tokens[-(max_length + 1) :][:-1], []).append(index)
    return [
        Row(tokens, tuple(indices), len(tokens) - max(len(requests[index][1]) for index in indices))
        for tokens, indices in served.items()
    ]


def group(rows: Sequence[Row]) -> list[Group]:
    """Divide rows into groups such that reading each beginning once spares the most tokens.

    In alphabetical order rows that begin alike are neighbours. Joining neighbours, those with the longest common
    beginning first, k rows spare k − 1 times what all of them share; two parts become one group where that is more
    than they spare apart.
    """
    rows = sorted(rows, key=lambda row: row.tokens)
    if not rows:
        return []
    common = [_common(first, second) for first, second in pairwise(rows)]
    parts = {index: _Part(index, index + 1) for index in range(len(rows))}  # by first row
    starts = list(range(len(rows)))  # first row of the part that ends with a row
    for boundary in sorted(range(len(common)), key=lambda index: -common[index]):
        joint = parts[starts[boundary]].join(parts[boundary + 1], common[boundary])
        parts[joint.start] = joint
        starts[joint.end - 1] = joint.start
    groups = [Group(tuple(rows[part.start : part.end]), part.common) for part in parts[0].whole()]
    return [each if len(each.rows) > 1 else Group(each.rows, each.rows[0].predicts) for each in groups]


@dataclass(frozen=True)
class _Part:
    """Consecutive rows: one group, or what two parts hold."""

    start: int
    end: int
    common: int = 0
    spared: int = 0
    parts: tuple[_Part, ...] = ()

    def join(self, other: _Part, common: int) -> _Part:
        """The part of both; `common` is what all its rows share."""
        spared = (other.end - self.start - 1) * common
        if spared > self.spared + other.spared:
            return _Part(self.start, other.end, common, spared)
        return _Part(self.start, other.end, 0, self.spared + other.spared, (self, other))

    def whole(self) -> list[_Part]:
        """The groups in it."""
        parts, left = [], [self]
        while left:
            part = left.pop()
            left += part.parts
            if not part.parts:
                parts.append(part)
        return parts


def _common(first: Row, second: Row) -> int:
    """Length of the beginning that two rows share and that neither needs predictions from."""
    limit = min(first.predicts, second.predicts)
    for position in range(limit):
        if first.tokens[position] != second.tokens[position]:
            return position
    return limit


@dataclass(frozen=True)
class _Reading:
    """Groups whose beginnings are read in one pass, cut to one length.

    Attributes:
        common: That length.
        owners: Each row, with the number of its beginning.
        beginnings: The distinct beginnings.
    """

    common: int
    owners: dict[Row, int] = field(default_factory=dict)
    beginnings: list[tuple[int, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> _Reading:
        """The reading of some groups."""
        reading = cls(min(each.common for each in groups))
        numbers: dict[tuple[int, ...], int] = {}
        for row in (row for each in groups for row in each.rows):
            reading.owners[row] = numbers.setdefault(row.tokens[: reading.common], len(numbers))
        reading.beginnings.extend(numbers)
        return reading

    @property
    def is_worthwhile(self) -> bool:
        """Whether sharing spares enough."""
        apart = sum(len(row.tokens) for row in self.owners)
        together = apart - (len(self.owners) - len(self.beginnings)) * self.common
        return together <= WORTHWHILE * apart


def _read(
    decoder: Decoder, groups: Sequence[Group], batch_size: BatchSize
) -> Iterator[tuple[Sequence[Row], Tensor, int]]:
    """Read all rows, in batches: the rows, their normed hidden states, and how many first tokens these leave out."""
    alone: list[Row] = []
    groups = sorted(groups, key=lambda each: -each.common)  # the longest first: memory runs out at once or never
    start = 0
    while start < len(groups):
        end = start + 1
        shortest = SIMILAR * groups[start].common
        while end < min(len(groups), start + batch_size.rows) and groups[end].common >= shortest:
            end += 1
        reading = _Reading.of(groups[start:end])
        if not reading.is_worthwhile:
            alone += reading.owners
            start = end
            continue
        filled, cache = batch_size.attempt(len(reading.beginnings), partial(_fill, decoder, reading))
        if not filled:
            continue  # with fewer at a time
        start = end
        if cache is None:
            alone += reading.owners
            continue

        def extend(batch: Sequence[Row], reading: _Reading = reading, cache: Any = cache) -> Tensor:
            owners = torch.tensor([reading.owners[row] for row in batch], device=decoder.input_device)
            return _forward(decoder, [row.tokens[reading.common :] for row in batch], _select(cache, owners))

        for batch, hidden in batch_size.over(sorted(reading.owners, key=_longest_first), extend):
            yield batch, hidden, reading.common
    plain = batch_size.over(
        sorted(alone, key=_longest_first), lambda batch: _forward(decoder, [row.tokens for row in batch])
    )
    for batch, hidden in plain:
        yield batch, hidden, 0


def _longest_first(row: Row) -> int:
    return -len(row.tokens)


@torch.inference_mode()
def _fill(decoder: Decoder, reading: _Reading) -> Any:
    """A cache that has read the beginnings; None where the family's can't be selected by row."""
    ids = torch.tensor(reading.beginnings, device=decoder.input_device)
    cache = getattr(decoder.forward(ids, use_cache=True), "past_key_values", None)
    selectable = all(hasattr(layer, "batch_select_indices") for layer in getattr(cache, "layers", [None]))
    return cache if selectable else None


@torch.inference_mode()
def _select(cache: Any, owners: Tensor) -> Any:
    """A cache with the beginning of each row, by number; the one given stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(owners)
    return selected


@torch.inference_mode()
def _forward(decoder: Decoder, rows: Sequence[Sequence[int]], cache: Any = None) -> Tensor:
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # on the right, where nobody looks
    ids = ids.to(decoder.input_device)
    output = decoder.forward(ids, past_key_values=cache, use_cache=cache is not None)
    return decoder.hidden_states(output)


@torch.inference_mode()
def _score_batch(
    decoder: Decoder, batch: Sequence[Row], hidden: Tensor, offset: int, requests: Sequence[Request]
) -> dict[int, Score]:
    """Scores of the requests that some rows serve, by index; `hidden` starts at the rows' token `offset`."""
    rows: list[int] = []  # of each place where something is predicted: its row …
    tokens: list[int] = []  # … and its token there
    targets: list[tuple[int, int, int]] = []  # place, token, and the request whose continuation it belongs to
    for number, row in enumerate(batch):
        end = len(rows) + len(row.tokens) - row.predicts
        rows += [number] * (len(row.tokens) - row.predicts)
        tokens += range(row.predicts - offset, len(row.tokens) - offset)
        for index in row.requests:
            continuation = requests[index][1]
            targets += [(end - len(continuation) + step, token, index) for step, token in enumerate(continuation)]
    predicting = hidden[rows, tokens]
    place, label, owner = (torch.tensor(column, device=predicting.device) for column in zip(*targets, strict=True))
    logprobs = torch.empty(len(targets), device=predicting.device)
    greedy = torch.empty(len(targets), dtype=torch.bool, device=predicting.device)
    step = max(16, LOGIT_BYTES.get(predicting.device.type, LOGIT_BYTES["cuda"]) // (4 * decoder.vocab_size))
    for start in range(0, len(rows), step):
        logits = decoder.logits(predicting[start : start + step]).float().to(predicting.device)
        here = ((place >= start) & (place < start + step)).nonzero().squeeze(1)
        at = place[here] - start
        logprobs[here] = logits[at, label[here]] - logits.logsumexp(dim=1)[at]
        greedy[here] = logits.argmax(dim=1)[at] == label[here]
    scores: dict[int, Score] = {index: (0.0, True) for row in batch for index in row.requests}
    for index, value, match in zip(owner.tolist(), logprobs.tolist(), greedy.tolist(), strict=True):
        total, matched = scores[index]
        scores[index] = (total + value, matched and match)
    return scores
