"""Tasks made by rules: a perfect answerer gets everything, one that guesses gets chance."""

import json
import random

import pytest

from linearpatch.evaluation.writing.haystacks import HiddenList, Needle
from linearpatch.evaluation.writing.questions import WORDS
from linearpatch.evaluation.writing.tasks import Arithmetic, Copying, Records, right_words

GUESSES = 100  # at each question


def words_of(text: str) -> int:
    return len(text.split())


TASKS = [Arithmetic(), Copying(), Records(), Needle(300, 0.5, words_of), HiddenList(300, 0.25, words_of)]
NAMES = [task.name for task in TASKS]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_a_perfect_answerer_gets_everything(task):
    for question in task.questions(40, seed=0):
        for written in (f" {question.answer}\n\nText: more", question.answer, f"{question.answer}\n"):
            assert task.score(question, written) == dict.fromkeys(task.metrics, 1.0)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_one_that_guesses_gets_chance(task):
    questions = task.questions(100, seed=0)
    generator = random.Random(0)
    for metric in task.metrics:
        scores = [
            task.score(question, task.guess(question, generator))[metric]
            for question in questions
            for _ in range(GUESSES)
        ]
        chance = sum(question.chance[metric] for question in questions) / len(questions)
        assert abs(sum(scores) / len(scores) - chance) <= 4 * (chance / len(scores)) ** 0.5


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_nothing_and_something_else_are_wrong(task):
    for question in task.questions(8, seed=0):
        for written in ("", "\n", "I don't know.", "{", "[1, 2]", "null", "-1"):
            assert set(task.score(question, written).values()) == {0.0}


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_questions_are_the_same_for_a_seed_and_differ_otherwise(task):
    first = task.questions(12, seed=0)
    assert first == task.questions(12, seed=0)
    assert first[:5] == task.questions(5, seed=0)
    assert first != task.questions(12, seed=1)
    assert len({question.prompt for question in first}) == 12
    assert not any(question.prompt.endswith(" ") or "\n" in question.answer for question in first)


def test_sums_are_right():
    for question in Arithmetic().questions(40, seed=3):
        *examples, asked = question.prompt.splitlines()
        assert len(examples) == 4
        for line in [*examples, f"{asked} {question.answer}"]:
            task, _, result = line.partition(" = ")
            assert eval(task) == int(result) >= 0


def test_records_need_the_fields_and_types_of_their_schema():
    task = Records()
    question = task.questions(1, seed=0)[0]
    record = json.loads(question.answer)
    assert set(record) == {"name", "age", "city"}
    for change, expected in [
        ({"age": record["age"] + 1}, {"valid": 1.0, "acc": 0.0}),
        ({"age": str(record["age"])}, {"valid": 0.0, "acc": 0.0}),
        ({"more": 1}, {"valid": 0.0, "acc": 0.0}),
    ]:
        assert task.score(question, json.dumps(record | change)) == expected
    assert task.score(question, question.answer[:-1]) == {"valid": 0.0, "acc": 0.0}


def test_copied_words_count_at_their_places():
    assert right_words("a b c d", "a b d c") == 0.5
    assert right_words("a b c d", "a b") == 0.5
    assert right_words("a b c d", "b c d") == 0.0
    assert len(WORDS) == len(set(WORDS)) == 64


@pytest.mark.parametrize("kind", [Needle, HiddenList])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_what_is_asked_for_is_said_once_at_its_depth(kind, depth):
    task = kind(400, depth, words_of)
    for question in task.questions(5, seed=1):
        text, _, asked = question.prompt.partition("\n\n")
        said = f"{asked} {question.answer}."
        assert text.count(said) == 1
        assert abs(text.index(said) / (len(text) - len(said)) - depth) < 0.06
        assert 400 - 24 - 12 < words_of(question.prompt) <= 400 - 24  # full, with room for the answer
