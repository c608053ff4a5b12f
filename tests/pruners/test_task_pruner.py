"""TALE: calibration questions alone, lm_eval's own scores, and the greedy choice against trying all."""

import json
from pathlib import Path

import pytest
from conftest import tiny_model
from small_runs import result, run

from linearpatch.calibration.questions import QuestionSource
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, DataError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.harness.calibration import of_calibration
from linearpatch.evaluation.harness.catalogue import select
from linearpatch.evaluation.tasks import Tasks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.pruners.task import TaskAware
from linearpatch.storage.cache import Cache

ANIMALS = ("A cat", "A dog", "A horse and a mule", "An ant")


def arc_rows(what, count):
    return [
        {
            "id": f"{what}{number}", "question": f"Which {what} comes {number}th?", "answerKey": "ABCD"[number % 4],
            "choices": {"text": list(ANIMALS), "label": ["A", "B", "C", "D"]},
        }
        for number in range(count)
    ]  # fmt: skip


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path) -> Path:
    """ARC-Easy with questions about animals for training, and about others for tests."""
    folder = tmp_path / "datasets"
    for split, what, count in (("train", "animal", 11), ("validation", "insect", 5), ("test", "secret", 7)):
        write(folder / "ai2_arc" / "ARC-Easy" / f"{split}.jsonl", arc_rows(what, count))
    return folder


def questions(data, **settings):
    return TaskAware(tasks=["arc_easy"], **settings).questions(data)


def texts(found):
    return [question.document["question"] for _, asked in found.questions.values() for question in asked]


def test_test_questions_are_never_asked(data):
    assert len(texts(questions(data))) == 11
    assert all("animal" in text for text in texts(questions(data)))
    drawn = texts(questions(data, limit=4))
    assert len(set(drawn)) == 4
    assert drawn == texts(questions(data, limit=4))
    assert drawn != texts(questions(data, limit=4, seed=1))


def test_a_task_without_other_questions_is_rejected():
    (entry,) = select(("arc_easy",)).entries
    changed = of_calibration(entry).changes
    assert changed["test_split"] == "train"
    alone = entry.__class__(entry.name, {**entry.config, "training_split": None, "validation_split": None},
                            entry.changes, entry._manager)  # fmt: skip
    with pytest.raises(ConfigError, match="no questions beside those of its split 'test'"):
        of_calibration(alone)


def test_answers_are_scored_as_evaluations_score_them(data):
    """The training questions, put in the place of the test questions of an evaluation."""
    decoder = decoder_of(tiny_model())
    asked = questions(data).tokenized(byte_tokenizer()).ask(decoder)
    (data / "ai2_arc/ARC-Easy/test.jsonl").write_text((data / "ai2_arc/ARC-Easy/train.jsonl").read_text())
    loaded = LoadedModel(None, byte_tokenizer(), "none")
    prepared = Tasks(tasks=["arc_easy"]).prepare("qa", Reader(None, "evaluation", data))(loaded, Cache())
    (found,) = prepared[0].run([Subject("dense", decoder, decoder)], lambda count: None)
    assert asked.accuracy == pytest.approx(found.metrics["qa/arc_easy/acc_norm"].value)


def test_the_layer_whose_absence_costs_least_goes(decoder, blocks, data):
    source = questions(data).tokenized(byte_tokenizer())
    workspace = Workspace(decoder, blocks, questions=source)
    edit = TaskAware(tasks=["arc_easy"], protect_first=1).select(workspace, 2)
    removed = []
    for step in edit.scores.steps:
        tried = {}
        for layer in range(1, 6):
            if layer not in removed:
                answered = source.ask(Edit.of_layers([*removed, layer]).decoder(decoder))
                tried[layer] = (-answered.accuracy, answered.loss, layer)
                assert step.losses[str(layer)] == pytest.approx(1 - answered.accuracy)
        removed.append(min(tried, key=tried.get))
        assert step.removed == removed[-1]
    assert list(edit.removed_layers) == removed


def test_a_run_reads_questions_before_the_model(data, said, tmp_path):
    words = ("pruner=task", "pruner.limit=3", "patch=none", "eval=[]", f"datasets_dir={data}", "num_pruned_layers=1",
             "model.settings.num_hidden_layers=3", "output_dir=out")  # fmt: skip
    assert run(*words) == 0
    record = result("out")
    assert record["pruning"]["method"] == "task"
    assert record["pruning"]["scores"]["criterion"] == "share of questions answered wrong"
    assert run(*words, "pruner.tasks=[]") == 1
    assert "pruner.tasks=[arc_easy]" in said()


def test_without_data_or_questions_it_says_what_to_do(decoder, blocks, tmp_path):
    with pytest.raises(DataError, match="no data for calibration questions of arc_easy"):
        QuestionSource(("arc_easy",), 3, 0).read(tmp_path)
    with pytest.raises(ConfigError, match="pruner=task needs questions"):
        TaskAware(tasks=["arc_easy"]).select(Workspace(decoder, blocks), 1)
