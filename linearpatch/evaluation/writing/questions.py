"""What a task is whose questions are made by rules and whose answers are written."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

Scores = Mapping[str, float]  # from 0 to 1, by the name of the metric


@dataclass(frozen=True)
class Question:
    """A prompt and what should follow it.

    Attributes:
        prompt: Ends where the answer begins, without the space between them.
        answer: What should be written, in one line.
        chance: What guessing gives, by the name of the metric.
    """

    prompt: str
    answer: str
    chance: Scores


class WrittenTask(ABC):
    """Questions made by rules, with a score for what is written as an answer."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    num_tokens: ClassVar[int]  # that an answer may take
    metrics: ClassVar[tuple[str, ...]] = ("acc",)

    @abstractmethod
    def questions(self, number: int, seed: int) -> list[Question]:
        """So many questions; always the same for the same seed."""

    @abstractmethod
    def score(self, question: Question, written: str) -> Scores:
        """What a written line is worth, for each of `metrics`."""

    @abstractmethod
    def guess(self, question: Question, generator: random.Random) -> str:
        """An answer that knows only the form of answers; on average it gets `chance`."""


def first_line(text: str) -> str:
    """The line that a model wrote after the prompt, without the space before and after it."""
    return text.strip().partition("\n")[0].strip()


def generator_of(name: str, seed: int) -> random.Random:
    """Random numbers of a task."""
    return random.Random(f"{name}/{seed}")


# Common words that are one token or two in most vocabularies.
WORDS: Sequence[str] = [
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kitchen",
    "ladder",
    "market",
    "needle",
    "orange",
    "paper",
    "queen",
    "river",
    "silver",
    "table",
    "uncle",
    "valley",
    "window",
    "yellow",
    "anchor",
    "bottle",
    "circle",
    "doctor",
    "eagle",
    "farmer",
    "guitar",
    "honey",
    "iron",
    "jungle",
    "king",
    "lemon",
    "mirror",
    "night",
    "ocean",
    "pencil",
    "rabbit",
    "school",
    "tiger",
    "village",
    "winter",
    "basket",
    "camera",
    "dragon",
    "flower",
    "glass",
    "horse",
    "letter",
    "monkey",
    "number",
    "park",
    "road",
    "snow",
    "tower",
    "water",
    "wheel",
    "bread",
    "cloud",
    "door",
    "fish",
]
