"""The questions of the smoke suite are well formed, lm-eval finds and loads them, and they show damage."""

import importlib.util
from collections import Counter
from functools import cache
from math import comb
from pathlib import Path

import pytest

import linearpatch.evaluation

FOLDER = Path(linearpatch.evaluation.__file__).parent / "smoke"
CHOICES = {"facts": 4, "completion": 4, "pronouns": 4, "arithmetic": 4}


@cache
def items_module():
    spec = importlib.util.spec_from_file_location("smoke_items", FOLDER / "items.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def items_of(kind):
    return items_module().read(kind)


def test_there_are_four_kinds_with_enough_items():
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(CHOICES) - {"pronouns"}
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


def test_a_pronoun_refers_to_the_subject_and_to_nobody_else_in_the_sentence():
    rule = items_module()
    for pronoun, others in rule.OTHERS.items():
        beside = {other.lower() for other in others}
        assert not beside & {subject.lower() for subject in rule.SUBJECTS[pronoun]}
    answers = Counter((item["choices"][item["answer"]], item["answer"]) for item in items_of("pronouns"))
    assert len(answers) == 16  # every pronoun is right at every place


@pytest.mark.embedded
@pytest.mark.slow
def test_each_kind_tells_the_embedded_model_from_one_without_nine_layers():
    """Paired by question, sign test, p < 0.01; layers as streamline chooses them."""
    from linearpatch.config import compose_experiment
    from linearpatch.models.edit import Edit
    from linearpatch.storage.cache import default_cache_dir

    model = compose_experiment(["model=smollm2_135m"]).model.load(default_cache_dir())
    edit = Edit.of_layers(range(10, 19))
    dense, pruned = (right_answers(one, model) for one in (model.decoder, edit.decoder(model.decoder)))
    for kind in CHOICES:
        pairs = list(zip(dense[kind], pruned[kind], strict=True))
        won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        chance = 2 * sum(comb(won + lost, k) for k in range(lost + 1)) / 2 ** (won + lost)
        assert won > lost, kind
        assert chance < 0.01, (kind, won, lost)


def right_answers(decoder, model):
    """Whether each question is answered right, by kind."""
    from linearpatch.data.reader import Reader
    from linearpatch.evaluation.evaluation import Subject
    from linearpatch.evaluation.tasks import Tasks
    from linearpatch.storage.cache import Cache

    found = {}
    for measurement in Tasks(["smoke"], num_fewshot=0).prepare("smoke", Reader(None, "evaluation", None))(
        model, Cache()
    ):
        (measured,) = measurement.run([Subject("one", decoder, decoder)], lambda count: None)
        kind = measurement.name.rpartition("_")[2]
        found[kind] = measured.questions[f"smoke/{kind}/acc"].tolist()
    return found
