"""Long inputs: a sentence or a list hidden at some depth among others, and asked for at the end."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from linearpatch.evaluation.writing.questions import WORDS, Question, Scores, WrittenTask, first_line, generator_of
from linearpatch.evaluation.writing.tasks import NAMES, right_words

LISTED = 6  # words of a list
SUBJECTS = ["the farmer", "the old king", "my doctor", "a young queen", "the tall monkey", "our letter carrier"]
VERBS = ["looked at", "walked past", "wrote about", "dreamed of", "asked for", "told us about"]
PLACES = ["in the morning", "near the river", "after the rain", "without a word", "for a long time", "on the way home"]


@dataclass(frozen=True)
class HiddenTask(WrittenTask):
    """Something is said once in a long text.

    Attributes:
        length: Tokens of a prompt at most.
        depth: Where it is said: 0 at the beginning of the text, 1 at its end.
        count: Counts the tokens of a text, as the model reads it.
    """

    length: int
    depth: float
    count: Callable[[str], int]

    num_tokens: ClassVar[int] = 4 * LISTED

    def questions(self, number: int, seed: int) -> list[Question]:
        """Prompts that are as long as whole sentences allow."""
        generator = generator_of(f"{self.name}/{self.length}/{self.depth}", seed)
        return [self._question(generator) for _ in range(number)]

    @abstractmethod
    def hidden(self, generator: random.Random) -> tuple[str, str, str, float]:
        """What is said, how it is asked for, the answer, and what guessing gives."""

    def _question(self, generator: random.Random) -> Question:
        said, asked, answer, chance = self.hidden(generator)
        room = self.length - self.num_tokens
        sentences: list[str] = []
        while (missing := room - self.count(_text(sentences, said, self.depth, asked))) >= 0:
            sentences += [_sentence(generator) for _ in range(max(1, missing // 24))]  # a sentence has fewer tokens
        while sentences and self.count(_text(sentences, said, self.depth, asked)) > room:
            sentences.pop()
        return Question(_text(sentences, said, self.depth, asked), answer, {"acc": chance})


def _text(sentences: list[str], said: str, depth: float, asked: str) -> str:
    place = round(depth * len(sentences))
    return f"{' '.join([*sentences[:place], said, *sentences[place:]])}\n\n{asked}"


def _sentence(generator: random.Random) -> str:
    start, verb, place = (generator.choice(parts) for parts in (SUBJECTS, VERBS, PLACES))
    sentence = f"{start} {verb} the {generator.choice(WORDS)} {place}."
    return sentence[0].upper() + sentence[1:]


class Needle(HiddenTask):
    """The secret word of a person."""

    name = "needle"

    def hidden(self, generator: random.Random) -> tuple[str, str, str, float]:
        """One sentence, asked for in its own words."""
        name, word = generator.choice(NAMES), generator.choice(WORDS)
        asked = f"The secret word of {name} is"
        return f"{asked} {word}.", asked, word, 1 / len(WORDS)

    def score(self, question: Question, written: str) -> Scores:
        """Whether the word comes first."""
        words = first_line(written).split()
        return {"acc": float(bool(words) and words[0].strip(".,;:!\"'") == question.answer)}

    def guess(self, question: Question, generator: random.Random) -> str:
        """Any word."""
        return generator.choice(WORDS)


class HiddenList(HiddenTask):
    """A list of words, to be written again."""

    name = "copy"

    def hidden(self, generator: random.Random) -> tuple[str, str, str, float]:
        """A sentence that names the words."""
        words = " ".join(generator.sample(WORDS, LISTED))
        return f"The list of words is: {words}.", "The list of words is:", words, 1 / len(WORDS)

    def score(self, question: Question, written: str) -> Scores:
        """The share of words that are right, each at its place."""
        return {"acc": right_words(question.answer, first_line(written).partition(".")[0])}

    def guess(self, question: Question, generator: random.Random) -> str:
        """Any words."""
        return " ".join(generator.choices(WORDS, k=LISTED))
