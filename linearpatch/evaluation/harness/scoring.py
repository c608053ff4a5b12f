"""Log-likelihoods of continuations, reading what requests have in common once.

The choices of a question share the question, the questions of a few-shot task its examples. Rows that begin alike are
put side by side; a batch first reads their beginnings, then continues each with its rows from the key-value cache.
Nothing is padded on the left and no position is shifted, so every family computes what it would compute row by row, up
to rounding. Logits are made only where a continuation is predicted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from linearpatch.memory import BatchSize
from linearpatch.models.decoder import Decoder
from linearpatch.models.loss import LOGIT_BYTES

Request = tuple[Sequence[int], Sequence[int]]  # tokens of the context, tokens of the continuation
Score = tuple[float, bool]  # log-likelihood of the continuation, and whether greedy decoding gives it

# Two passes cost more than one over as many tokens; beginnings are shared where they spare so much.
WORTHWHILE = 0.9


@dataclass(frozen=True)
class Row:
    """Tokens that a model reads to score one or more requests.

    Attributes:
        tokens: Context and continuation without its last token.
        requests: Indices of the requests that they serve.
        predicts: The first token from which something is predicted.
        common: So many first tokens are read together with those of the neighbours, at most `predicts`.
    """

    tokens: tuple[int, ...]
    requests: tuple[int, ...]
    predicts: int
    common: int = 0


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
        batch_size: Rows in one forward pass.
        max_length: Longer sequences lose their first tokens.
        share: Read common beginnings once.
        on_requests: Called after each pass with the number of requests that it scored.

    Returns:
        Natural logarithms and greedy matches, in the order of the requests.
    """
    scores: list[Score] = [(0.0, False)] * len(requests)
    rows = _rows(requests, max_length)
    rows = arrange(rows) if share else sorted(rows, key=_longest_first)
    reader = _Reader(decoder)
    for batch, (hidden, offset) in batch_size.over(rows, reader.read):
        found = _score_batch(decoder, batch, hidden, offset, requests)
        for index, value in found.items():
            scores[index] = value
        on_requests(len(found))
    return scores


def arrange(rows: Sequence[Row]) -> list[Row]:
    """Order rows so that neighbours share beginnings, and set how much each shares with its neighbours.

    In alphabetical order rows that begin alike are neighbours. Joining neighbours, those with the longest common
    beginning first, a group of k rows spares k − 1 times what all of them share; two groups are joined where that is
    more than they spare apart.
    """
    rows = sorted(rows, key=lambda row: row.tokens)
    common = [_common(first, second) for first, second in pairwise(rows)]
    segments = {index: _Segment(index, index + 1) for index in range(len(rows))}  # by first row
    starts = list(range(len(rows)))  # first row of the segment that ends with a row
    for boundary in sorted(range(len(common)), key=lambda index: -common[index]):
        left, right = segments[starts[boundary]], segments[boundary + 1]
        joint = left.join(right, common[boundary])
        segments[joint.start] = joint
        starts[joint.end - 1] = joint.start
    groups = sorted(segments[0].groups() if rows else [], key=lambda group: -group.common)
    return [
        replace(row, common=group.common if group.end - group.start > 1 else row.predicts)
        for group in groups
        for row in sorted(rows[group.start : group.end], key=_longest_first)
    ]


@dataclass(frozen=True)
class _Segment:
    """Consecutive rows: one group, or what two segments hold."""

    start: int
    end: int
    common: int = 0
    spared: int = 0
    parts: tuple[_Segment, ...] = ()

    def join(self, other: _Segment, common: int) -> _Segment:
        """The segment of both; `common` is what all its rows share."""
        spared = (other.end - self.start - 1) * common
        if spared > self.spared + other.spared:
            return _Segment(self.start, other.end, common, spared)
        return _Segment(self.start, other.end, 0, self.spared + other.spared, (self, other))

    def groups(self) -> list[_Segment]:
        """The groups in it."""
        found, open_segments = [], [self]
        while open_segments:
            segment = open_segments.pop()
            open_segments += segment.parts
            if not segment.parts:
                found.append(segment)
        return found


def _rows(requests: Sequence[Request], max_length: int) -> list[Row]:
    """One row for each distinct sequence; continuations of one token share that of their context."""
    served: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        tokens = tuple(context) + tuple(continuation)
        served.setdefault(tokens[-(max_length + 1) :][:-1], []).append(index)
    return [
        Row(tokens, tuple(indices), len(tokens) - max(len(requests[index][1]) for index in indices))
        for tokens, indices in served.items()
    ]


def _common(first: Row, second: Row) -> int:
    """Length of the beginning that two rows share and that neither needs predictions from."""
    limit = min(first.predicts, second.predicts)
    for position in range(limit):
        if first.tokens[position] != second.tokens[position]:
            return position
    return limit


def _longest_first(row: Row) -> int:
    return -len(row.tokens)


class _Reader:
    """Forward passes over batches of rows; keeps the cache of the last beginning while batches share it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._shares = True  # until a cache turns out not to be selectable by row
        self._kept: tuple[tuple[int, ...], Any] | None = None

    @torch.inference_mode()
    def read(self, batch: Sequence[Row]) -> tuple[Tensor, int]:
        """Normed hidden states `[rows, tokens, hidden_size]`, and how many first tokens of each row they leave out."""
        common = min(row.common for row in batch)
        beginnings = list(dict.fromkeys(row.tokens[:common] for row in batch))
        longest = max(len(row.tokens) for row in batch)
        apart, together = len(batch) * longest, len(beginnings) * common + len(batch) * (longest - common)
        cache = self._cache(beginnings) if self._shares and together < WORTHWHILE * apart else None
        if cache is None:
            return self._forward([row.tokens for row in batch]), 0
        position = {beginning: index for index, beginning in enumerate(beginnings)}
        owners = torch.tensor([position[row.tokens[:common]] for row in batch], device=self._decoder.input_device)
        cache.batch_select_indices(owners)
        return self._forward([row.tokens[common:] for row in batch], cache), common

    def _cache(self, beginnings: Sequence[tuple[int, ...]]) -> Any:
        """A cache that has read the beginnings, for the caller to change; None where the family's can't be shared."""
        if len(beginnings) > 1:
            self._kept = None
            return self._prefill(beginnings)
        if self._kept is None or self._kept[0] != beginnings[0]:
            self._kept = None  # freed before the next is made
            self._kept = (beginnings[0], self._prefill(beginnings))
        return copy.deepcopy(self._kept[1])

    def _prefill(self, beginnings: Sequence[tuple[int, ...]]) -> Any:
        ids = torch.tensor(beginnings, device=self._decoder.input_device)
        cache = self._decoder.model.base_model(input_ids=ids, use_cache=True).past_key_values
        self._shares = all(hasattr(layer, "batch_select_indices") for layer in getattr(cache, "layers", [None]))
        return cache if self._shares else None

    def _forward(self, rows: Sequence[Sequence[int]], cache: Any = None) -> Tensor:
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # on the right, where nobody looks
        ids = ids.to(self._decoder.input_device)
        output = self._decoder.model.base_model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        hidden: Tensor = output.last_hidden_state
        return hidden


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
