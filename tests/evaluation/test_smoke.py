"""The questions of the smoke suite are well formed, and lm-eval finds and loads them."""

import json
from collections import Counter
from pathlib import Path

import pytest

import linearpatch.evaluation

FOLDER = Path(linearpatch.evaluation.__file__).parent / "smoke"
CHOICES = {"facts": 4, "completion": 4, "pronouns": 2, "arithmetic": 4}


def items_of(kind):
    return [json.loads(line) for line in (FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_there_are_four_kinds_with_enough_items():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(CHOICES)
    assert min(len(items_of(kind)) for kind in CHOICES) >= 45
    assert sum(len(items_of(kind)) for kind in CHOICES) >= 150


@pytest.mark.parametrize("kind", CHOICES)
def test_every_item_is_well_formed(kind):
    for item in items_of(kind):
        assert set(item) == {"context", "choices", "answer"}
        assert item["context"]
        assert item["context"] == item["context"].strip()
        assert len(item["choices"]) == CHOICES[kind]
        assert len(set(item["choices"])) == len(item["choices"])
        assert all(choice and choice == choice.strip() for choice in item["choices"])
        assert item["answer"] in range(len(item["choices"]))


def test_no_context_comes_twice():
    contexts = Counter(item["context"].lower() for kind in CHOICES for item in items_of(kind))
    assert [context for context, count in contexts.items() if count > 1] == []


@pytest.mark.parametrize("kind", CHOICES)
def test_no_position_holds_most_of_the_answers(kind):
    counts = Counter(item["answer"] for item in items_of(kind))
    limit = 0.4 if CHOICES[kind] == 4 else 0.6
    assert max(counts.values()) <= limit * counts.total()


def test_lm_eval_loads_the_group_and_asks_every_choice(monkeypatch, tmp_path):
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.chdir(tmp_path)
    manager = tasks.TaskManager(include_path=str(FOLDER), include_defaults=False)
    names = {f"smoke_{kind}" for kind in CHOICES}
    assert set(manager.all_tasks) == {"smoke", *names}

    loaded = manager.load(["smoke"])
    assert set(loaded["groups"]) == {"smoke"}
    assert set(loaded["tasks"]) == names
    for kind, choices in CHOICES.items():
        task = loaded["tasks"][f"smoke_{kind}"]
        task.build_all_requests(rank=0, world_size=1)
        items = items_of(kind)
        assert len(task.instances) == choices * len(items)
        for instance in task.instances:
            context, choice = instance.args
            item = items[instance.doc_id]
            assert choice == f" {item['choices'][instance.idx]}"
            examples, line, asked = context.rpartition("\n")
            assert asked == item["context"]
            assert (len(examples.splitlines()), line) == ((5, "\n") if kind == "arithmetic" else (0, ""))
            assert not any(example.startswith(other["context"]) for example in examples.splitlines() for other in items)
        assert [task.doc_to_target(doc) for doc in task.eval_docs] == [item["answer"] for item in items]
