"""Three short tasks: sums and differences, copying a list, and writing a record as JSON."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from linearpatch.evaluation.writing.questions import (
    WORDS,
    Question,
    Scores,
    WrittenTask,
    first_line,
    generator_of,
)

EXAMPLES = 4  # before a sum
DIGITS = (2, 3)  # of the numbers, in turn
COPIED = 8  # words of a list


class Arithmetic(WrittenTask):
    """Sums and differences of numbers with two and three digits, after four examples."""

    name = "arithmetic"
    num_tokens = 8

    def questions(self, number: int, seed: int) -> list[Question]:
        """Half of them with two digits, half with three."""
        generator = generator_of(self.name, seed)
        return [self._question(generator, DIGITS[index % len(DIGITS)]) for index in range(number)]

    def score(self, question: Question, written: str) -> Scores:
        """Whether the first number is right."""
        number = re.search(r"-?\d+", first_line(written))
        return {"acc": float(number is not None and number[0] == question.answer)}

    def guess(self, question: Question, generator: random.Random) -> str:
        """Any number that can be the result of so many digits."""
        return str(generator.randrange(round(1 / question.chance["acc"])))

    def _question(self, generator: random.Random, digits: int) -> Question:
        *examples, (asked, result) = (self._sum(generator, digits) for _ in range(EXAMPLES + 1))
        shown = "".join(f"{task} = {value}\n" for task, value in examples)
        return Question(f"{shown}{asked} =", str(result), {"acc": 1 / (2 * 10**digits - 1)})

    @staticmethod
    def _sum(generator: random.Random, digits: int) -> tuple[str, int]:
        first, second = sorted((generator.randrange(10 ** (digits - 1), 10**digits) for _ in range(2)), reverse=True)
        return (f"{first} + {second}", first + second) if generator.random() < 0.5 else (
            f"{first} - {second}", first - second
        )  # fmt: skip


class Copying(WrittenTask):
    """A list of eight words, written again; after one example."""

    name = "copying"
    num_tokens = 4 * COPIED

    def questions(self, number: int, seed: int) -> list[Question]:
        """Lists of different words."""
        generator = generator_of(self.name, seed)
        return [self._question(generator) for _ in range(number)]

    def score(self, question: Question, written: str) -> Scores:
        """The share of words that are right, each at its place."""
        return {"acc": right_words(question.answer, written)}

    def guess(self, question: Question, generator: random.Random) -> str:
        """Any words."""
        return " ".join(generator.choices(WORDS, k=COPIED))

    def _question(self, generator: random.Random) -> Question:
        example, asked = (" ".join(generator.sample(WORDS, COPIED)) for _ in range(2))
        prompt = f"List: {example}\nThe same list: {example}\n\nList: {asked}\nThe same list:"
        return Question(prompt, asked, {"acc": 1 / len(WORDS)})


def right_words(answer: str, written: str) -> float:
    """The share of an answer's words that are written at their places."""
    words = first_line(written).split()
    expected = answer.split()
    return sum(word == right for right, word in zip(expected, words, strict=False)) / len(expected)


Maker = Callable[[random.Random], Any]
NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Julia",
    "Kevin",
    "Laura",
    "Martin",
    "Nina",
    "Oscar",
    "Paula",
    "Simon",
]
CITIES = [
    "Berlin",
    "Cairo",
    "Dublin",
    "Lima",
    "London",
    "Madrid",
    "Oslo",
    "Paris",
    "Prague",
    "Rome",
    "Sydney",
    "Tokyo",
    "Vienna",
    "Warsaw",
]


def _one_of(values: list[str]) -> Maker:
    return lambda generator: generator.choice(values)


def _whole(low: int, high: int) -> Maker:
    return lambda generator: generator.randint(low, high)


def _either(generator: random.Random) -> bool:
    return generator.random() < 0.5


# A sentence for each schema, and how the fields' values are made.
SCHEMAS: Mapping[str, Mapping[str, Maker]] = {
    "{name} is {age} years old and lives in {city}.": {
        "name": _one_of(NAMES), "age": _whole(18, 90), "city": _one_of(CITIES),
    },
    "{buyer} ordered {count} items of kind {item}; paid: {paid}.": {
        "buyer": _one_of(NAMES), "item": _one_of(list(WORDS)), "count": _whole(2, 40), "paid": _either,
    },
    "In {city} it is {degrees} degrees; rain: {rain}.": {
        "city": _one_of(CITIES), "degrees": _whole(1, 35), "rain": _either,
    },
    "The {first} costs {price} euros, more than the {second}.": {
        "first": _one_of(list(WORDS)), "second": _one_of(list(WORDS)), "price": _whole(5, 900),
    },
}  # fmt: skip


class Records(WrittenTask):
    """A sentence as a JSON object of a schema, after two examples of the schema."""

    name = "json"
    num_tokens = 64
    metrics = ("valid", "acc")

    def questions(self, number: int, seed: int) -> list[Question]:
        """The schemas in turn."""
        generator = generator_of(self.name, seed)
        schemas = list(SCHEMAS.items())
        return [self._question(generator, *schemas[index % len(schemas)]) for index in range(number)]

    def score(self, question: Question, written: str) -> Scores:
        """Whether it is an object with the fields and types of the schema (`valid`), and with the right values."""
        expected = json.loads(question.answer)
        try:
            record, _ = json.JSONDecoder().raw_decode(first_line(written))
        except (ValueError, RecursionError):
            record = None
        valid = isinstance(record, dict) and {k: type(v) for k, v in record.items()} == {
            k: type(v) for k, v in expected.items()
        }
        return {"valid": float(valid), "acc": float(valid and record == expected)}

    def guess(self, question: Question, generator: random.Random) -> str:
        """Any characters."""
        return "".join(generator.choices(string.printable, k=len(question.answer)))

    def _question(self, generator: random.Random, sentence: str, schema: Mapping[str, Maker]) -> Question:
        records = [{field: make(generator) for field, make in schema.items()} for _ in range(3)]
        lines = [f"Text: {sentence.format(**record)}\nJSON: {json.dumps(record)}" for record in records]
        answer = json.dumps(records[-1])
        return Question("\n\n".join(lines).removesuffix(f" {answer}"), answer, {"valid": 0.0, "acc": 0.0})
