"""What lies beside the record: written whole, read back, earlier runs kept."""

import pandas
import pytest
import torch
from safetensors.torch import load_file

from linearpatch.errors import StorageError
from linearpatch.results.questions import Answers


def test_a_row_holds_what_all_stages_gave_to_a_question(tmp_path):
    answers = Answers(tmp_path)
    answers.add("dense", "questions", "qa/a/acc", torch.tensor([1.0, 0.0, 1.0]))
    answers.add("pruned", "questions", "qa/a/acc", torch.tensor([1.0, 0.0, 0.0]))
    answers.add("pruned", "questions", "qa/b/acc", torch.tensor([0.5]))
    answers.write()
    table = pandas.read_parquet(tmp_path / "questions.parquet")
    assert list(table.columns) == ["metric", "question", "document", "dense", "pruned"]
    first = table[table.metric == "qa/a/acc"]
    assert first.question.tolist() == [0, 1, 2]
    assert (first.pruned - first.dense).tolist() == [0, 0, -1]
    assert table[table.metric == "qa/b/acc"].dense.isna().all()


def test_answers_of_earlier_runs_stay_and_new_ones_replace_their_like(tmp_path):
    answers = Answers(tmp_path)
    answers.add("dense", "questions", "qa/a/acc", torch.ones(5))
    answers.add("dense", "questions", "qa/b/acc", torch.zeros(2))
    answers.add("dense", "arrays", "magnitude", torch.arange(3.0))
    answers.write()
    later = Answers(tmp_path)
    later.add("dense", "questions", "qa/a/acc", torch.zeros(3))
    later.add("patched", "arrays", "magnitude", torch.arange(2.0))
    later.write()
    found = Answers(tmp_path)
    assert found.questions["dense"]["qa/a/acc"].tolist() == [0, 0, 0]
    assert found.questions["dense"]["qa/b/acc"].tolist() == [0, 0]
    assert set(load_file(tmp_path / "diagnostics.safetensors")) == {"dense/magnitude", "patched/magnitude"}


def test_answers_to_other_questions_stand_in_other_rows(tmp_path):
    answers = Answers(tmp_path)
    for stage, documents in (("dense", [1, 2]), ("pruned", [1, 3])):
        answers.add(stage, "questions", "qa/a/acc", torch.ones(2))
        answers.add(stage, "documents", "qa/a/acc", torch.tensor(documents))
    answers.write()
    table = pandas.read_parquet(tmp_path / "questions.parquet")
    assert len(table) == 3
    assert table.dense.notna().tolist() == [True, True, False]
    found = Answers(tmp_path)
    assert found.documents == answers.documents
    assert found.questions["pruned"]["qa/a/acc"].tolist() == [1, 1]


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    Answers(tmp_path).write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["questions.parquet", "diagnostics.safetensors"])
def test_a_broken_file_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(StorageError, match=f"{name} can't be read"):
        Answers(tmp_path)


def test_many_questions_take_little_room(tmp_path):
    answers = Answers(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for stage in ("dense", "pruned", "patched"):
        answers.add(stage, "questions", "mmlu/acc", torch.randint(2, (14_042,), generator=generator).float())
    answers.write()
    assert (tmp_path / "questions.parquet").stat().st_size < 100_000


def test_stages_that_are_one_model_may_share_an_array(tmp_path):
    values = torch.tensor([1.0, 2.0])
    with Answers(tmp_path) as answers:
        answers.add("patched", "arrays", "windows", values)
        answers.add("distilled", "arrays", "windows", values)
    found = load_file(tmp_path / "diagnostics.safetensors")
    assert torch.equal(found["patched/windows"], values)
    assert torch.equal(found["distilled/windows"], values)
