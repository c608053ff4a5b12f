"""Tasks on a model in memory against lm_eval's own command, and what is said where something is wrong."""

import json
from pathlib import Path

import lm_eval
import pytest
from conftest import measurements_of, tiny_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError, DataError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.harness import catalogue
from linearpatch.evaluation.harness.catalogue import OWN_TASKS, select
from linearpatch.evaluation.tasks import Tasks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.random import byte_tokenizer
from linearpatch.results.metric import Metric

ANIMALS = ("A cat", "A dog", "A horse and a mule", "An ant")


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def datasets_dir(tmp_path) -> Path:
    """ARC-Easy without its training split, and two subjects of MMLU, in the hub's layout."""
    folder = tmp_path / "datasets"
    arc = [
        {
            "id": str(number), "question": f"Which animal comes {number}th?", "answerKey": "ABCD"[number % 4],
            "choices": {"text": list(ANIMALS), "label": ["A", "B", "C", "D"]},
        }
        for number in range(9)
    ]  # fmt: skip
    write_rows(folder / "ai2_arc" / "ARC-Easy" / "test.jsonl", arc)
    for subject in ("anatomy", "astronomy"):
        rows = [
            {"question": f"What is {number} of {subject}?", "choices": list(ANIMALS), "answer": number % 4}
            for number in range(7)
        ]
        write_rows(folder / "mmlu" / subject / "test.jsonl", rows)
        write_rows(folder / "mmlu" / subject / "dev.jsonl", rows[:5])
    return folder


def dense_subject() -> Subject:
    decoder = decoder_of(tiny_model())
    return Subject("dense", decoder, decoder)


def measure(settings: Tasks, datasets_dir: Path | None = None, model=None, name="qa"):
    """Metrics, and what each question gave."""
    decoder = decoder_of(model or tiny_model())
    metrics, questions = {}, {}
    for measurement in measurements_of(settings, name, Reader(None, "evaluation", datasets_dir), byte_tokenizer()):
        (found,) = measurement.run([Subject("dense", decoder, decoder)], lambda count: None)
        metrics |= found.metrics
        questions |= found.questions
    return metrics, questions


def of_lm_eval(tasks, **settings):
    """Results and samples of lm_eval alone."""
    model = HFLM(pretrained=tiny_model(), tokenizer=byte_tokenizer(), batch_size=4)
    return lm_eval.simple_evaluate(model=model, tasks=tasks, bootstrap_iters=100, **settings)


def test_answers_equal_those_of_lm_eval_question_by_question():
    manager = TaskManager(include_path=str(OWN_TASKS), include_defaults=False)
    expected = of_lm_eval(["smoke"], task_manager=manager, limit=12)
    metrics, questions = measure(Tasks(["smoke"], limit=12), name="smoke")
    for task in expected["samples"]:
        for kind in ("acc", "acc_norm"):
            name = f"smoke/{task.removeprefix('smoke_')}/{kind}"
            assert questions[name].tolist() == [sample[kind] for sample in expected["samples"][task]]
            assert metrics[name].value == expected["results"][task][f"{kind},none"]
            assert metrics[name].stderr == pytest.approx(expected["results"][task][f"{kind}_stderr,none"])
            assert metrics[name].n == 12
            assert metrics[name].chance == 0.25
        chosen = questions[f"smoke/{task.removeprefix('smoke_')}/choice"].tolist()
        right = [float(choice == int(sample["target"])) for choice, sample in
                 zip(chosen, expected["samples"][task], strict=True)]  # fmt: skip
        assert right == [sample["acc_norm"] for sample in expected["samples"][task]]


def test_local_copies_are_read_and_few_shot_prompts_are_lm_evals(datasets_dir):
    folder = datasets_dir / "mmlu" / "anatomy"
    task = {
        "task": "mmlu_anatomy", "dataset_path": "json", "dataset_name": None, "num_fewshot": 3,
        "dataset_kwargs": {"data_files": {split: str(folder / f"{split}.jsonl") for split in ("dev", "test")}},
    }  # fmt: skip
    manager = TaskManager(include_path=str(catalogue.TASKS / "mmlu" / "default"), include_defaults=False)
    expected = of_lm_eval([{"group": "one", "task": [task]}], task_manager=manager)
    metrics, questions = measure(Tasks(["mmlu_anatomy"], num_fewshot=3), datasets_dir, name="mmlu")
    samples = expected["samples"]["mmlu_anatomy"]
    assert questions["mmlu/anatomy/acc"].tolist() == [sample["acc"] for sample in samples]
    assert "3-shot" in metrics["mmlu/anatomy/acc"].protocol


def test_a_missing_split_that_nothing_needs_is_no_obstacle(datasets_dir):
    metrics, questions = measure(Tasks(["arc_easy"]), datasets_dir)
    assert set(metrics) == {"qa/arc_easy/acc", "qa/arc_easy/acc_norm"}
    assert metrics["qa/arc_easy/acc"].n == len(questions["qa/arc_easy/acc"]) == 9
    assert "arc_easy v1.0, 0-shot" in metrics["qa/arc_easy/acc"].protocol
    with pytest.raises(DataError, match=r"the examples of arc_easy.*train\.jsonl"):
        measure(Tasks(["arc_easy"], num_fewshot=2), datasets_dir)


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_other_forms_of_local_copies(datasets_dir, suffix):
    expected = measure(Tasks(["arc_easy"]), datasets_dir)
    file = datasets_dir / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    if suffix == "json":
        file.with_suffix(".json").write_text(json.dumps(rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file.with_suffix(".parquet"))
    assert measure(Tasks(["arc_easy"]), datasets_dir)[0] == expected[0]


def test_prompts_that_would_say_none_are_told(datasets_dir, caplog):
    file = datasets_dir / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, [{**rows[0], "question": None}, *rows[1:]])
    metrics, _ = measure(Tasks(["arc_easy"]), datasets_dir)
    assert metrics["qa/arc_easy/acc"].n == 9  # as lm_eval asks them
    assert "task arc_easy: 'question' is null in 1 of 9 questions" in caplog.text


def test_a_chat_template_changes_the_prompt(datasets_dir):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}"
    settings = Tasks(["arc_easy"], chat_template=True)
    (measurement,) = measurements_of(settings, "qa", Reader(None, "evaluation", datasets_dir), tokenizer)
    (found,) = measurement.run([dense_subject()], lambda count: None)
    plain, _ = measure(Tasks(["arc_easy"]), datasets_dir)
    metric = found.metrics["qa/arc_easy/acc"]
    assert "chat template" in metric.protocol
    assert metric.token_hash != plain["qa/arc_easy/acc"].token_hash
    with pytest.raises(ConfigError, match="chat_template=true"):
        measure(settings, datasets_dir)


def generation_task(folder: Path) -> Path:
    """A task in which text is written, as YAML."""
    rows = write_rows(folder / "rows.jsonl", [{"text": f"Say {number}:", "answer": "yes"} for number in range(5)])
    (folder / "say.yaml").write_text(f"""\
task: say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: false}}
filter_list:
  - name: first
    filter: [{{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    return folder


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_generation_equals_that_of_lm_eval(tmp_path, batch_size):
    folder = generation_task(tmp_path / "own")
    expected = of_lm_eval(["say"], task_manager=TaskManager(include_path=str(folder), include_defaults=False))
    steps = []
    settings = Tasks(["say"], include_path=str(folder), batch_size=batch_size)
    (measurement,) = measurements_of(settings, "generation", Reader(None, "evaluation", None), byte_tokenizer())
    (found,) = measurement.run([dense_subject()], steps.append)
    metric = found.metrics["generation/say/exact_match/first"]
    assert metric.value == expected["results"]["say"]["exact_match,first"]
    assert metric.n == 5
    assert sum(steps) == pytest.approx(5)


def test_the_models_tokenizer_stays_as_it_is(datasets_dir):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    (measurement,) = measurements_of(Tasks(["arc_easy"]), "qa", Reader(None, "evaluation", datasets_dir), tokenizer)
    measurement.run([dense_subject()], lambda count: None)
    assert tokenizer.pad_token is None


def test_progress_counts_questions(datasets_dir):
    reader = Reader(None, "evaluation", datasets_dir)
    (measurement,) = measurements_of(Tasks(["arc_easy"]), "qa", reader, byte_tokenizer())
    steps = []
    measurement.run([dense_subject()], steps.append)
    assert measurement.total == 9
    assert sum(steps) == pytest.approx(9)


def keys(settings, datasets_dir, tokenizer=None):
    prepared = measurements_of(settings, "qa", Reader(None, "evaluation", datasets_dir), tokenizer or byte_tokenizer())
    return [measurement.key for measurement in prepared]


def test_the_key_changes_with_all_that_matters_and_nothing_else(datasets_dir, tmp_path):
    first = keys(Tasks(["arc_easy"]), datasets_dir)
    assert keys(Tasks(["arc_easy"]), datasets_dir) == first
    assert keys(Tasks(["arc_easy"], batch_size=2, share_prefixes=False, missing_data="skip"), datasets_dir) == first
    moved = tmp_path / "elsewhere"
    datasets_dir.rename(moved)
    assert keys(Tasks(["arc_easy"]), moved) == first
    assert keys(Tasks(["arc_easy"], limit=3), moved) != first
    assert keys(Tasks(["arc_easy"], system_instruction="Answer."), moved) != first
    assert keys(Tasks(["arc_easy"], max_length=64), moved) != first
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["horse"])
    assert keys(Tasks(["arc_easy"]), moved, tokenizer) != first
    file = moved / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    file.write_text(file.read_text().replace("5th", "fifth"))
    assert keys(Tasks(["arc_easy"]), moved) != first


def test_tasks_without_data_are_named_before_anything_runs(datasets_dir):
    with pytest.raises(DataError, match=r"no data for piqa, mmlu_virology\. Looked for .*piqa/validation\.jsonl"):
        measure(Tasks(["piqa", "arc_easy", "mmlu_virology"]), datasets_dir)
    with pytest.raises(DataError, match=r"mmlu_stem \(\d+ tasks\)"):
        measure(Tasks(["mmlu_stem"]))


def test_tasks_without_data_are_skipped_where_asked(datasets_dir):
    settings = Tasks(["piqa", "arc_easy"], missing_data="skip")
    metrics, _ = measure(settings, datasets_dir)
    assert metrics["qa/piqa/acc"].value is None
    assert metrics["qa/piqa/acc"].n == 0
    assert metrics["qa/piqa/acc"].reason.startswith("no data")
    assert metrics["qa/arc_easy/acc"].value is not None
    averages = {average.name: average for average in settings.aggregates("qa", metrics)}
    assert averages["qa/paper"].weights == {"qa/arc_easy/acc_norm": 1.0}
    assert "1 of 2 tasks" in averages["qa/paper"].protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: {"id": "1", "query": row["question"], "choices": row["choices"]},
            "has no column 'question'.*query",
        ),
        (lambda row: {**row, "choices": ["no", "labels"]}, "rows that don't fit"),
    ],
)
def test_a_wrong_column_is_named_with_its_file(datasets_dir, change, message):
    file = datasets_dir / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    write_rows(file, [change(json.loads(line)) for line in file.read_text().splitlines()])
    with pytest.raises(DataError, match=message) as caught:
        measure(Tasks(["arc_easy"]), datasets_dir)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["{broken", '["a", "list"]\n', ""])
def test_a_file_that_holds_no_rows_is_named(datasets_dir, text):
    file = datasets_dir / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=r"ARC-Easy/test\.jsonl"):
        measure(Tasks(["arc_easy"]), datasets_dir)


def test_the_row_that_cannot_be_read_is_told(datasets_dir):
    file = datasets_dir / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    lines = file.read_text().split("\n")
    file.write_text("\n".join([*lines[:3], "{oops", *lines[4:]]))
    with pytest.raises(DataError, match="row 4"):
        measure(Tasks(["arc_easy"]), datasets_dir)


@pytest.mark.slow
def test_a_task_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "oops.yaml").write_text("task: [oops\n")
    with pytest.raises(ConfigError, match=r"oops\.yaml can't be read as YAML"):
        measure(Tasks(["oops"], include_path=str(tmp_path / "own")))


def test_a_task_whose_code_fails_is_no_missing_data(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.py").write_text("import no_such_package\n\ndef text(doc): return ''\n")
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ntest_split: test\ndoc_to_text: !function mine.text\n"
    )
    with pytest.raises(ConfigError, match=r"mine of lm_eval .* can't be loaded: .*no_such_package"):
        measure(Tasks(["mine"], include_path=str(folder), missing_data="skip"))


def test_groups_and_tags_become_tasks_without_the_whole_index(monkeypatch):
    monkeypatch.setattr(catalogue, "_full_index", lambda _: pytest.fail("the whole index was built"))
    catalogue.select.cache_clear()
    mmlu = select(("mmlu",))
    assert len(mmlu.entries) == 57
    assert set(mmlu.groups) == {"mmlu", "mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"}
    assert sum(len(members) for name, members in mmlu.groups.items() if name != "mmlu") == 57
    nine = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "piqa", "winogrande", "wsc273", "race", "copa")
    assert [entry.name for entry in select(nine).entries] == list(nine)
    assert [entry.name for entry in select(("gsm8k", "triviaqa")).entries] == ["gsm8k", "triviaqa"]


@pytest.mark.slow
def test_an_unknown_task_is_told_with_near_names():
    with pytest.raises(ConfigError, match="Did you mean 'arc_easy'"):
        select(("arc_esy",))


def test_averages_are_those_of_the_paper_and_of_groups():
    def metrics(**counts: int):
        return {name.replace("__", "/"): Metric(0.5, None, count, "lm_eval 1", "") for name, count in counts.items()}

    found = metrics(qa__arc_easy__acc=10, qa__arc_easy__acc_norm=10, qa__boolq__acc=30)
    averages = {a.name: a for a in Tasks(["arc_easy", "boolq"]).aggregates("qa", found)}
    assert averages["qa/paper"].weights == {"qa/arc_easy/acc_norm": 0.5, "qa/boolq/acc": 0.5}
    assert averages["qa/acc"].weights == {"qa/arc_easy/acc": 0.5, "qa/boolq/acc": 0.5}
    assert averages["qa/acc_norm"].weights == {"qa/arc_easy/acc_norm": 1.0}
    assert "1 of 2 tasks" in averages["qa/acc_norm"].protocol
    assert [name for name, average in averages.items() if average.headline] == ["qa/paper"]

    found = metrics(smoke__facts__acc=30, smoke__completion__acc=10, smoke__pronouns__acc=5, smoke__arithmetic__acc=5)
    (pooled,) = Tasks(["smoke"]).aggregates("smoke", found)
    assert pooled.name == "smoke/acc"
    assert pooled.pooled
    assert pooled.weights["smoke/facts/acc"] == 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "tasks=\\[arc_easy"),
        ({"tasks": ["smoke"], "batch_size": 0}, "batch_size"),
        ({"tasks": ["smoke"], "batch_size": "many"}, "Allowed: auto"),
        ({"tasks": ["smoke"], "limit": 0}, "limit"),
        ({"tasks": ["smoke"], "num_fewshot": -1}, "num_fewshot"),
        ({"tasks": ["smoke"], "missing_data": "ignore"}, "Allowed: error, skip"),
        ({"tasks": ["smoke"], "include_path": "nowhere"}, "include_path=nowhere is not a folder"),
    ],
)
def test_impossible_settings_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        Tasks(**settings)


def test_code_that_the_model_writes_is_never_run(tmp_path):
    folder = generation_task(tmp_path / "own")
    (folder / "say.yaml").write_text((folder / "say.yaml").read_text() + "unsafe_code: true\n")
    with pytest.raises(ConfigError, match="never does"):
        measure(Tasks(["say"], include_path=str(folder)))
