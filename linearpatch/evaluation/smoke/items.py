"""The questions of the `smoke` suite, one function a kind, in the form of lm-eval's `custom_dataset`.

lm-eval loads this file by its path, so it imports nothing of the package. Most were written one by one; capitals and
pronouns follow a rule. Of four sentences with pronouns that were tried, the two are kept that best distinguish SmolLM2
from itself without layers 10 to 18.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

CAPITALS = {
    "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo",
    "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Ireland": "Dublin", "Turkey": "Ankara",
    "Iran": "Tehran", "Iraq": "Baghdad", "Thailand": "Bangkok", "Cuba": "Havana", "Canada": "Ottawa",
    "Kenya": "Nairobi", "Peru": "Lima", "India": "New Delhi", "Hungary": "Budapest", "Mexico": "Mexico City",
}  # fmt: skip
WRONG = (3, 7, 12)  # how far down the list the wrong capitals are

# Subjects of a sentence, by the pronoun that refers back to them.
SUBJECTS = {
    "himself": ("the boy", "my uncle", "the king", "her father", "the old man", "our grandfather"),
    "herself": ("the girl", "my aunt", "the queen", "his mother", "the old woman", "our grandmother"),
    "themselves": ("the children", "my parents", "the soldiers", "her brothers", "the two nurses", "our friends"),
    "itself": ("the machine", "the company", "the robot", "the cat", "the country", "the computer"),
}
BY_PEOPLE = ("hurt", "saw", "asked", "blamed", "cut", "introduced")
BY_THINGS = ("repaired", "protected", "cleaned", "hurt", "defended", "changed")
# Who else is in the sentence: somebody that another pronoun stands for.
OTHERS = {
    "himself": ("the women", "the girl", "his sisters", "the machine"),
    "herself": ("the men", "the boy", "her brothers", "the machine"),
    "themselves": ("the girl", "the king", "the old man", "the machine"),
    "itself": ("the women", "the boy", "the sisters", "the king"),
}
SENTENCES = ("Yesterday evening, {subject} {verb}", "While {other} watched, {subject} {verb}")


def capitals() -> Iterator[dict[str, Any]]:
    """A question for each country; the right answer's place goes around."""
    names = list(CAPITALS.values())
    for number, (country, capital) in enumerate(CAPITALS.items()):
        choices = [names[(number + step) % len(names)] for step in WRONG]
        place = number % (len(WRONG) + 1)
        choices.insert(place, capital)
        yield {"context": f"The capital of {country} is", "choices": choices, "answer": place}


def reflexives() -> Iterator[dict[str, Any]]:
    """Each sentence with each subject, and the pronoun that refers back to it left out.

    Verbs, others and the right answer's place go around, so that none of them says anything.
    """
    count = 0
    for shift, sentence in enumerate(SENTENCES):
        for pronoun, subjects in SUBJECTS.items():
            verbs, others = BY_THINGS if pronoun == "itself" else BY_PEOPLE, OTHERS[pronoun]
            for number, subject in enumerate(subjects):
                verb, other = verbs[(number + shift) % len(verbs)], others[number % len(others)]
                choices = [choice for choice in SUBJECTS if choice != pronoun]
                choices.insert(count % len(SUBJECTS), pronoun)
                context = sentence.format(subject=subject, verb=verb, other=other)
                yield {"context": context, "choices": choices, "answer": count % len(SUBJECTS)}
                count += 1


def read(kind: str) -> list[dict[str, Any]]:
    """The items of a kind, from the file of that name beside this one, and by their rule.

    Args:
        kind: `facts`, `completion`, `pronouns` or `arithmetic`.

    Returns:
        For each item its `context`, its `choices` and the index of the right one, `answer`.
    """
    if kind == "pronouns":
        return list(reflexives())
    lines = Path(__file__).with_name(f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return [*items, *capitals()] if kind == "facts" else items


def facts(**_: Any) -> dict[str, Dataset]:
    """Beginnings of sentences that state a well-known fact."""
    return {"test": Dataset.from_list(read("facts"))}


def completion(**_: Any) -> dict[str, Dataset]:
    """Everyday situations with one sensible continuation."""
    return {"test": Dataset.from_list(read("completion"))}


def pronouns(**_: Any) -> dict[str, Dataset]:
    """Sentences whose subject says which pronoun refers back to it."""
    return {"test": Dataset.from_list(read("pronouns"))}


def arithmetic(**_: Any) -> dict[str, Dataset]:
    """Sums, differences, products, comparisons and word problems with small numbers."""
    return {"test": Dataset.from_list(read("arithmetic"))}
