"""What a model writes after the beginning of a text: how it repeats itself, and how far it is from dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linearpatch.data.blocks import TokenBlocks
from linearpatch.evaluation.evaluation import Measured, Measurement, Subject
from linearpatch.evaluation.writing.greedy import greedy_texts, stop_tokens
from linearpatch.evaluation.writing.measured_task import mean_metric
from linearpatch.models.decoder import Decoder
from linearpatch.models.model import LoadedModel
from linearpatch.storage.cache import Cache, Entry

GRAM = 4  # tokens of what counts as repeated
TIMES = 3  # that a loop has been run through …
SHORTEST_LOOP = 12  # … in at least so many tokens
KIND = "continuation"  # folder of the cache
VERSION = 1
# Of each continuation: name of the metric, its unit, and whether short tables show it.
METRICS = {
    "agreement": ("share", True),  # short tables and comparisons take a larger share for a better one
    "repeated_4grams": ("share", False),
    "loops": ("share", False),
    "length": ("", False),
    "length_ratio": ("", False),
    "first_difference": ("", False),
    "edit_distance": ("share", False),
}


def repeated_share(tokens: Sequence[int], gram: int = GRAM) -> float:
    """The share of the n-grams of a text that occurred in it before.

    >>> repeated_share([1, 2, 3, 1, 2, 3, 1, 2], gram=2)
    0.5714285714285714
    """
    grams = list(zip(*(tokens[offset:] for offset in range(gram)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_in_loop(tokens: Sequence[int]) -> bool:
    """Whether a text ends by going through the same tokens three times or more, in at least twelve tokens."""
    for period in range(1, len(tokens) // TIMES + 1):
        span = max(TIMES * period, SHORTEST_LOOP)
        if span <= len(tokens) and list(tokens[-span:-period]) == list(tokens[len(tokens) - span + period :]):
            return True
    return False


def first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(first, second, strict=False)
    common = min(len(first), len(second))
    return next((place for place, (token, expected) in enumerate(pairs) if token != expected), common)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of the longer of two texts that both begin with; 1 where both are empty."""
    longest = max(len(first), len(second))
    return first_difference(first, second) / longest if longest else 1.0


def edit_distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Levenshtein's distance between two texts in tokens, as a share of the longer one.

    >>> edit_distance([1, 2, 3, 4], [2, 3, 5, 4])
    0.5
    """
    before = list(range(len(second) + 1))
    for row, token in enumerate(first, start=1):
        current = [row]
        for column, expected in enumerate(second, start=1):
            current.append(min(before[column] + 1, current[-1] + 1, before[column - 1] + (token != expected)))
        before = current
    return before[-1] / max(len(first), len(second), 1)


@dataclass(frozen=True)
class Continuations:
    """Beginnings of a text that every model continues.

    Attributes:
        model: The dense model …
        cache: … and where its own continuations are kept, with which those of the others are compared.
        blocks: The beginnings.
        num_tokens: Of a continuation at most.
        batch_size: Continuations at a time, or `auto`.
        owner: The section of the configuration that it is in.
    """

    model: LoadedModel
    cache: Cache
    blocks: TokenBlocks
    num_tokens: int
    batch_size: int | str
    owner: str

    def measurement(self, name: str) -> Measurement:
        """All of them as one measurement."""
        protocol = (
            f"greedy continuations of {self.blocks.ids.shape[1]} tokens of {self.blocks.source}, up to "
            f"{self.num_tokens} tokens"
        )

        def run(subjects: Sequence[Subject], on_step: Callable[[float], None]) -> list[Measured]:
            expected = self._of_dense(on_step if subjects[0].decoder is subjects[0].dense else lambda count: None)
            results = []
            for subject in subjects:
                is_dense = subject.decoder is subject.dense
                texts = expected if is_dense else self._written(subject.decoder, on_step)
                results.append(self._measured(name, protocol, texts, expected))
            return results

        return Measurement(name, {**self._key, "protocol": protocol}, len(self.blocks.ids), run)

    @property
    def _key(self) -> dict[str, Any]:
        return {"version": VERSION, "tokens": self.blocks.hash, "num_tokens": self.num_tokens, "ends": self._ends}

    @property
    def _ends(self) -> list[int]:
        return stop_tokens(self.model.tokenizer)

    def _written(self, decoder: Decoder, on_step: Callable[[float], object]) -> list[list[int]]:
        return greedy_texts(
            decoder, self.blocks.ids.tolist(), num_tokens=self.num_tokens, stop=self._ends,
            batch_size=self.batch_size, owner=self.owner, on_step=on_step,
        )  # fmt: skip

    def _of_dense(self, on_step: Callable[[float], object]) -> list[list[int]]:
        """What the dense model writes, once for all stages."""

        def generate() -> Entry:
            texts = self._written(self.model.decoder, on_step)
            tokens = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
            return Entry({"tokens": tokens, "lengths": torch.tensor([len(text) for text in texts])})

        entry = self.cache.get(KIND, {"model": self.model.key, **self._key}, generate)
        return [part.tolist() for part in entry.tensors["tokens"].split(entry.tensors["lengths"].tolist())]

    def _measured(
        self, name: str, protocol: str, texts: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
    ) -> Measured:
        values = {metric: torch.empty(len(texts), dtype=torch.float64) for metric in METRICS}
        for index, (text, dense) in enumerate(zip(texts, expected, strict=True)):
            values["repeated_4grams"][index] = repeated_share(text)
            values["loops"][index] = float(len(text) == self.num_tokens and is_in_loop(text))
            values["length"][index] = len(text)
            values["length_ratio"][index] = len(text) / max(len(dense), 1)
            values["first_difference"][index] = first_difference(text, dense)
            values["agreement"][index] = agreement(text, dense)
            values["edit_distance"][index] = edit_distance(text, dense)
        metrics = {
            f"{name}/{metric}": mean_metric(values[metric], protocol, self.blocks.hash, unit=unit, headline=headline)
            for metric, (unit, headline) in METRICS.items()
        }
        numbers = torch.arange(len(texts))
        return Measured(
            metrics,
            {f"{name}/{metric}": each.float() for metric, each in values.items()},
            {f"{name}/{metric}": numbers for metric in values},
        )
