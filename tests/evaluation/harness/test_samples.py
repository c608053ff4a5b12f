"""pass@k against its definition, and of a task that samples; tasks that vLLM answers."""

import itertools
import json
from math import comb
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model
from edits import edit_of, on_stream
from small_runs import FAST

from linearpatch.cli import main
from linearpatch.data.reader import Reader
from linearpatch.errors import ConfigError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.harness.samples import Samples, pass_at_k, samples_of
from linearpatch.evaluation.harness.vllm import stock_model
from linearpatch.evaluation.tasks import Tasks
from linearpatch.models.decoder import decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.random import byte_tokenizer
from linearpatch.storage.cache import Cache


def test_it_is_the_share_of_draws_with_a_right_answer():
    for total, right, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if right <= total >= k:
            draws = list(itertools.combinations([True] * right + [False] * (total - right), k))
            assert pass_at_k(total, right, k) == pytest.approx(sum(map(any, draws)) / comb(total, k))


def test_which_k_are_reported():
    assert Samples("acc", [1], 1, [0]).counts == [1]
    assert Samples("acc", [1], 8, [0]).counts == [1, 2, 4, 8]
    assert Samples("acc", [1], 6, [0]).counts == [1, 2, 4, 6]


TASK = """\
task: sampled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
repeats: 6
generation_kwargs: {{do_sample: true, temperature: 1.0, until: ["\\n"], max_gen_toks: 3}}
filter_list: [{{name: first, filter: [{{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def sampled(tmp_path):
    """Settings of a task that asks six times."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": "x"}) + "\n" for n in range(5)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sampled.yaml").write_text(TASK.format(file=file))
    return Tasks(["sampled"], include_path=str(folder))


def measure(settings, decoder):
    model = LoadedModel(decoder, byte_tokenizer(), "0123456789abcdef")
    (measurement,) = settings.prepare("tasks", Reader(None, "evaluation", None))(model, Cache())
    (measured,) = measurement.run([Subject("dense", decoder, decoder)], lambda count: None)
    return measured


def test_a_task_that_samples_has_pass_at_k(sampled, monkeypatch):
    decoder = decoder_of(tiny_model())
    seen = []

    def keep(task):
        found = samples_of(task)
        seen.append((task, found))
        return found

    monkeypatch.setattr("linearpatch.evaluation.harness.suite.samples_of", keep)
    measured = measure(sampled, decoder)
    names = {name for name in measured.metrics if "pass@" in name}
    assert names == {f"tasks/sampled/exact_match/first/pass@{k}" for k in (1, 2, 4, 6)}
    ((task, (samples,)),) = seen
    answers = {instance.doc_id: instance.resps for instance in task.instances}
    assert all(len(set(texts)) > 1 for texts in answers.values())  # they are sampled
    assert list(samples.right) == [sum(text == "x" for text in answers[document]) for document in samples.documents]
    again = measure(sampled, decoder)
    assert all(torch.equal(values, again.questions[name]) for name, values in measured.questions.items())


def test_right_answers_count_whatever_their_place():
    class Task:
        OUTPUT_TYPE = "generate_until"

        def __init__(self):
            self.instances = [SimpleNamespace(doc_id=n, doc={"answer": "b"}, resps=list("abbc")) for n in range(2)]
            self._filters = [First()]

        def process_results(self, doc, results):
            return {"acc": float(results[0] == doc["answer"]), "length": len(results[0]) + 1}

    class First:
        name = "none"

        def apply(self, instances):
            for instance in instances:
                instance.filtered_resps[self.name] = instance.resps[0]

    task = Task()
    (samples,) = samples_of(task)
    assert (samples.name, list(samples.right), samples.total) == ("acc", [2, 2], 4)
    assert samples.pass_at(2) == pytest.approx([5 / 6, 5 / 6])
    assert all(not hasattr(instance, "filtered_resps") for instance in task.instances)


def test_only_models_that_vllm_knows_are_given_to_it():
    decoder = decoder_of(tiny_model())
    pruned = edit_of((2, 3))
    assert type(stock_model(Subject("pruned", decoder, decoder, pruned), "eval.qa")) is type(decoder.model)
    patched = edit_of((2, 3), [(on_stream(2, 4), LinearMap(torch.eye(32)))])
    with pytest.raises(ConfigError, match=r"eval.qa.backend=vllm serves stock models.*mlp_refit"):
        stock_model(Subject("patched", decoder, decoder, patched), "eval.qa")


def test_a_patch_that_vllm_doesnt_know_is_rejected_before_a_model_is_loaded(tmp_path, said):
    assert (
        main(["run", *FAST, "patch=lstsq", "eval=[smoke]", "eval.smoke.backend=vllm", f"output_dir={tmp_path}/D"]) == 1
    )
    assert "eval.smoke measures stock models alone" in said()
    assert not (tmp_path / "D" / "result.json").exists()


def test_without_vllm_the_backend_is_rejected(monkeypatch):
    monkeypatch.setattr("linearpatch.evaluation.harness.vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs vLLM, which isn't installed.*linearpatch\[vllm\]"):
        Tasks(["smoke"], backend="vllm").prepare("smoke", Reader(None, "evaluation", None))


@pytest.mark.gpu
@pytest.mark.slow
def test_vllm_answers_as_the_model_in_memory():
    pytest.importorskip("vllm", reason="vllm is not installed")
    decoder = decoder_of(tiny_model(vocab_size=512, head_dim=16, num_attention_heads=4).cuda())
    in_memory = measure(Tasks(["smoke"], limit=10), decoder)
    served = measure(Tasks(["smoke"], limit=10, backend="vllm"), decoder)
    for name, values in in_memory.questions.items():
        assert (served.questions[name] == values).float().mean() >= 0.8, name
