"""`eval=generation` and `eval=long` on tiny models: what is recorded, and that dense is the measure."""

import pytest
from conftest import FakeCorpus, tiny_model
from edits import edit_of, view_of

from linearpatch.config import compose_experiment
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.generation import TASKS, Generation
from linearpatch.evaluation.long import LongInputs
from linearpatch.evaluation.writing import greedy
from linearpatch.evaluation.writing.continuations import edit_distance
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.storage.cache import Cache

READER = Reader(FakeCorpus(), "evaluation")
SMALL = Generation(num_continuations=3, prompt_length=20, new_tokens=12, limit=3)


@pytest.fixture(scope="module")
def models():
    dense = decoder_of(tiny_model())
    return dense, decoder_of(view_of(dense, [2, 3]))


def measure(evaluation, name, models, cache=None):
    dense, pruned = models
    loaded = LoadedModel(dense, byte_tokenizer(), "tiny")
    metrics, questions = {"dense": {}, "pruned": {}}, {"dense": {}, "pruned": {}}
    for measurement in evaluation.prepare(name, READER)(loaded, cache or Cache()):
        for subject in (Subject("dense", dense, dense), Subject("pruned", pruned, dense, edit_of((2, 3)))):
            done = []
            (found,) = measurement.run([subject], done.append)
            assert sum(done) <= measurement.total + 1e-6
            metrics[subject.stage] |= found.metrics
            questions[subject.stage] |= found.questions
    return metrics, questions


def test_continuations_are_compared_with_those_of_dense(models):
    metrics, questions = measure(SMALL, "generation", models)
    values = {stage: {name: metric.value for name, metric in found.items()} for stage, found in metrics.items()}
    names = ("agreement", "repeated_4grams", "loops", "length", "length_ratio", "first_difference", "edit_distance")
    assert {name for name in values["dense"] if "/continuations/" in name} == {
        f"generation/continuations/{name}" for name in names
    }
    own = {name: values["dense"][f"generation/continuations/{name}"] for name in names}
    assert (own["length_ratio"], own["edit_distance"], own["first_difference"]) == (1.0, 0.0, own["length"])
    assert own["agreement"] == 1.0
    blocks = FakeCorpus().documents()[0]
    tokens = byte_tokenizer()(blocks).input_ids
    assert len(tokens) > 60
    for metric in metrics["pruned"].values():
        assert metric.n == 3
        assert len(metric.protocol) > 0
    assert values["pruned"]["generation/continuations/edit_distance"] > 0
    assert questions["pruned"]["generation/continuations/edit_distance"].shape == (3,)


@pytest.mark.slow
def test_the_distance_is_that_of_what_both_models_write(models):
    metrics, _ = measure(SMALL, "generation", models)
    blocks = READER.open().cut(SMALL.spec("generation"), byte_tokenizer())
    texts = []
    for decoder in models:
        rows = decoder.model.generate(blocks.ids, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2)
        texts.append([[token for token in row if token != 2] for row in rows[:, 20:].tolist()])
    distances = [edit_distance(first, second) for first, second in zip(*texts, strict=True)]
    assert metrics["pruned"]["generation/continuations/edit_distance"].value == pytest.approx(sum(distances) / 3)


def test_dense_writes_its_continuations_once(models, monkeypatch):
    calls = []
    real = greedy.continuations

    def counted(decoder, *arguments, **settings):
        calls.append(decoder)
        return real(decoder, *arguments, **settings)

    monkeypatch.setattr(greedy, "continuations", counted)
    measure(Generation(num_continuations=2, prompt_length=20, new_tokens=8, tasks=[]), "generation", models)
    assert calls == [models[0], models[1]]


def test_who_answers_everything_gets_everything(models, monkeypatch):
    tokenizer = byte_tokenizer()
    answers = {}

    def perfect(decoder, prompts, *arguments, **settings):
        return [tokenizer(answers[tokenizer.decode(prompt)]).input_ids for prompt in prompts]

    monkeypatch.setattr(greedy, "continuations", perfect)
    for task in TASKS.values():
        answers |= {question.prompt: f" {question.answer}\nand more" for question in task.questions(3, 0)}
    metrics, questions = measure(Generation(num_continuations=0, limit=3), "generation", models)
    assert {name: metric.value for name, metric in metrics["pruned"].items()} == {
        "generation/json/valid": 1.0, "generation/json/acc": 1.0,
        "generation/arithmetic/acc": 1.0, "generation/copying/acc": 1.0,
    }  # fmt: skip
    assert metrics["dense"]["generation/arithmetic/acc"].chance == pytest.approx((2 / 199 + 1 / 1999) / 3)
    assert questions["dense"]["generation/json/acc"].tolist() == [1.0] * 3


@pytest.mark.slow
def test_long_inputs_by_length_and_depth(models):
    evaluation = LongInputs(lengths=[400, 600, 9000], depths=[0, 100], limit=2)
    metrics, _ = measure(evaluation, "long", models)
    expected = {
        f"long/{task}/{length}/{part}acc"
        for task in ("needle", "copy") for length in (400, 600) for part in ("", "depth_0/", "depth_100/")
    }  # fmt: skip
    assert set(metrics["dense"]) == expected  # the model doesn't read 9,000 tokens
    assert metrics["dense"]["long/needle/400/acc"].n == 4
    assert metrics["dense"]["long/needle/400/depth_0/acc"].n == 2
    means = evaluation.aggregates("long", metrics["dense"])
    assert [mean.name for mean in means] == ["long/needle/acc", "long/copy/acc"]
    assert means[0].weights == {"long/needle/400/acc": 0.5, "long/needle/600/acc": 0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generation(tasks=["poems"]), r"eval\.generation\.tasks is 'poems'.*arithmetic"),
        (lambda: Generation(tasks=[], num_continuations=0), "neither tasks nor continuations"),
        (lambda: Generation(limit=0), r"eval\.generation\.limit is 0"),
        (lambda: Generation(prompt_length=1), r"eval\.generation\.prompt_length is 1"),
        (lambda: LongInputs(tasks=[]), r"eval\.long\.tasks is empty"),
        (lambda: LongInputs(lengths=[64]), r"eval\.long\.lengths is 64\. Allowed: at least 128"),
        (lambda: LongInputs(depths=[120]), "from 0 to 100"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_no_length_that_the_model_reads(models):
    with pytest.raises(ConfigError, match=r"the model reads 2,048 tokens\. Set a length of at most 2048"):
        measure(LongInputs(lengths=[4096]), "long", models)


def test_a_trial_makes_them_small():
    evaluations = compose_experiment(["eval=[generation,long]", "debug=tiny"]).evaluations
    assert (evaluations["generation"].limit, evaluations["generation"].num_continuations) == (2, 2)
    assert evaluations["long"].lengths == [128]
    assert compose_experiment(["eval=[generation]"]).evaluations == {"generation": Generation()}
