"""Evaluations in whole runs: what the record holds, and what is not computed again."""

import json
from pathlib import Path

import pandas
import pytest

from linearpatch.cli import main
from linearpatch.evaluation.harness.model import HarnessModel
from linearpatch.results.files import read_record
from linearpatch.tracking.views import scalars

DENSE = 12  # layers of model=random
SMALL = ("debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Number of layers of each model that a task was run on."""
    calls: list[int] = []
    plain = HarnessModel.loglikelihood

    def loglikelihood(self, requests, disable_tqdm=True):
        calls.append(self._decoder.num_layers)
        return plain(self, requests)

    monkeypatch.setattr(HarnessModel, "loglikelihood", loglikelihood)
    return calls


def run(folder: Path, *overrides: str) -> dict:
    assert main(["run", *SMALL, f"output_dir={folder}", *overrides]) == 0
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_the_record_holds_tasks_averages_differences_and_what_is_retained(tmp_path):
    found = run(tmp_path / "D", "eval=[ppl,smoke,speed,diagnostics]")
    kinds = {f"smoke/{kind}/{metric}" for kind in ("facts", "completion", "pronouns", "arithmetic") for metric in
             ("acc", "acc_norm")}  # fmt: skip
    for stage, metrics in found["metrics"].items():
        assert kinds | {"smoke/acc", "smoke/acc_norm", "ppl/pydoc", "speed/prefill_tokens_per_s"} <= set(metrics)
        assert metrics["smoke/acc"]["n"] == 16
        for metric in metrics.values():
            assert {"value", "stderr", "n", "protocol", "token_hash", "unit", "counted"} <= set(metric)
        bases = {"dense": set(), "pruned": {"dense"}, "patched": {"dense", "pruned"}}[stage]
        assert set(metrics["smoke/acc"].get("versus", {})) == bases
        assert set(metrics["smoke/facts/acc"].get("versus", {})) == bases
    table = pandas.read_parquet(tmp_path / "D" / "questions.parquet")
    assert list(table.columns) == ["metric", "question", "document", "dense", "pruned", "patched"]
    facts = table[table.metric == "smoke/facts/acc"]
    for stage in ("dense", "pruned", "patched"):
        assert facts[stage].mean() == pytest.approx(found["metrics"][stage]["smoke/facts/acc"]["value"])
    assert (tmp_path / "D" / "diagnostics.safetensors").exists()
    assert set(found["retained"]) <= {"pruned", "patched"}
    record = read_record(tmp_path / "D")
    shown = scalars(record)  # what W&B gets
    assert shown["patched/smoke/acc"] == record.metrics["patched"]["smoke/acc"].value
    for name, kept in record.retained.get("patched", {}).get("mean_of_ratios", {}).items():
        assert shown[f"patched/retained/mean_of_ratios/{name}"] == kept.value


@pytest.mark.slow
def test_a_sweep_measures_dense_and_each_pruned_model_once(tmp_path):
    overrides = [*SMALL, f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache", "eval=[smoke]", "pruner=tail"]
    assert main(["run", "-m", *overrides, "patch=rotate,lstsq", "patch.sites=one_per_interface"]) == 0
    kinds = 4
    entries = {file: file.stat().st_mtime for file in (tmp_path / "cache" / "evaluation").glob("*.safetensors")}
    assert len(entries) == kinds * (1 + 1 + 2)  # dense, one pruned model, two patches
    patched = [time for time in entries.values() if time > max(made(tmp_path / "D" / ".shared"))]
    assert len(patched) == kinds * 2  # all else came from the steps that both share


def made(folder):
    """When each record below a folder was completed."""
    return [file.stat().st_mtime for file in folder.glob("*/result.json")]


@pytest.mark.slow
def test_an_evaluation_asked_for_later_is_the_only_one_made(tmp_path, measured):
    first = run(tmp_path / "D", "eval=[smoke]")
    done = len(measured)
    later = run(tmp_path / "D", "eval=[smoke,tasks]", "tasks=[smoke_facts]", "eval.tasks.limit=2")
    assert len(measured) == done + 3
    assert later["metrics"]["dense"]["smoke/acc"] == first["metrics"]["dense"]["smoke/acc"]
    assert later["metrics"]["dense"]["tasks/smoke_facts/acc"]["n"] == 2
    again = run(tmp_path / "E", "eval=[smoke]")
    assert len(measured) == done + 3
    assert again["metrics"] == first["metrics"]


@pytest.mark.slow
def test_tasks_that_were_finished_before_an_interruption_are_kept(tmp_path, measured, monkeypatch):
    counting = HarnessModel.loglikelihood

    def interrupted(self, requests, disable_tqdm=True):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return counting(self, requests)

    monkeypatch.setattr(HarnessModel, "loglikelihood", interrupted)
    assert main(["run", *SMALL, f"output_dir={tmp_path}/D", "eval=[smoke]"]) == 1
    record = json.loads((tmp_path / "D" / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert {name.split("/")[1] for name in record["metrics"]["dense"]} == {"facts", "completion"}
    monkeypatch.setattr(HarnessModel, "loglikelihood", counting)
    measured.clear()
    found = run(tmp_path / "D", "eval=[smoke]")
    assert measured.count(DENSE) == 2
    assert found["metrics"]["dense"]["smoke/acc"]["n"] == 16


@pytest.mark.slow
def test_text_is_written_for_gsm8k_and_triviaqa(tmp_path):
    sums = [{"question": f"What is {n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(6)]
    colours = [{"question": f"What colour is {n}", "answer": {"aliases": ["red", "Red"]}} for n in range(3)]
    for path, rows in {
        "gsm8k/main/train": sums, "gsm8k/main/test": sums, "trivia_qa/rc.nocontext/validation": colours,
    }.items():  # fmt: skip
        file = tmp_path / "data" / f"{path}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(
        tmp_path / "D",
        "eval=[generation_tasks]",
        "eval.generation_tasks.tasks=[gsm8k,triviaqa]",
        f"datasets_dir={tmp_path}/data",
        "stages=[dense,pruned]",
    )
    for metrics in found["metrics"].values():
        assert {name: metric["n"] for name, metric in metrics.items()} == {
            "generation_tasks/gsm8k/exact_match/strict-match": 2,
            "generation_tasks/gsm8k/exact_match/flexible-extract": 2,
            "generation_tasks/triviaqa/exact_match/remove_whitespace": 2,
        }  # fmt: skip
        assert "5-shot" in metrics["generation_tasks/gsm8k/exact_match/strict-match"]["protocol"]


@pytest.mark.slow
def test_stages_that_answered_other_questions_are_not_compared(tmp_path, capsys):
    folder = tmp_path / "data" / "ai2_arc" / "ARC-Easy"
    folder.mkdir(parents=True)

    def ask(word: str, stages: str) -> dict:
        rows = [
            {"question": f"{word} {number}?", "answerKey": "A", "choices": {"text": ["x", "yy"], "label": ["A", "B"]}}
            for number in range(12)
        ]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        chosen = ["eval=[tasks]", "tasks=[arc_easy]", "eval.tasks.limit=12", f"datasets_dir={tmp_path}/data"]
        return run(tmp_path / "D", *chosen, f"stages=[{stages}]")

    first = ask("Which", "dense,pruned")
    assert "dense" in first["metrics"]["pruned"]["tasks/arc_easy/acc"]["versus"]
    capsys.readouterr()
    later = ask("What", "dense")
    assert later["metrics"]["pruned"]["tasks/arc_easy/acc"]["versus"] == {}
    captured = capsys.readouterr()
    assert "dense and pruned answered different questions in tasks/arc_easy/acc" in " ".join(captured.err.split())
    assert "different data" in captured.out
    table = pandas.read_parquet(tmp_path / "D" / "questions.parquet")
    assert not (table.dense.notna() & table.pruned.notna()).any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval=[tasks]", "tasks=[no_such_task_at_all]"], "is not a task, group or tag"),
        (["eval=[tasks]"], "eval=tasks needs names of tasks"),
        (["eval=[qa]"], "there is no data for arc_challenge"),
        (["eval=[smoke]", "eval.smoke.chat_template=true"], "tokenizer has none"),
        (["eval=[smoke]", "eval.smoke.batch_size=0"], "Allowed: auto"),
        (["eval=[smoke]", "missing_data=maybe"], "Allowed: error, skip"),
    ],
)
def test_mistakes_are_told_before_a_layer_is_ranked(tmp_path, capsys, overrides, message):
    assert main(["run", *SMALL, f"output_dir={tmp_path}/D", *overrides]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    file = tmp_path / "D" / "result.json"
    assert not file.exists() or "rank" not in json.loads(file.read_text())["timings_s"]


@pytest.mark.slow
def test_tasks_without_data_are_skipped_only_where_asked(tmp_path, capsys):
    found = run(tmp_path / "D", "eval=[ppl,qa]", "missing_data=skip")
    assert found["metrics"]["dense"]["qa/piqa/acc"]["value"] is None
    assert found["metrics"]["dense"]["qa/piqa/acc"]["reason"].startswith("no data")
    assert "qa: no data for arc_challenge, arc_easy, boolq" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.embedded
def test_the_smoke_suite_tells_dense_from_chance_and_from_heavily_pruned(tmp_path):
    from scipy.stats import binomtest

    overrides = ["eval=[smoke]", "pruner=explicit", "pruner.layers=[12,13,14,15,16,17,18,19,20,21]"]
    assert (
        main(["run", *overrides, "num_pruned_layers=10", "patch=none", "tracker=none", f"output_dir={tmp_path}"]) == 0
    )
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    dense, pruned = found["dense"]["smoke/acc"], found["pruned"]["smoke/acc"]
    number, chance = 230, ((78 + 52 + 52) / 4 + 48 / 2) / 230  # pronouns have two choices
    assert dense["n"] == number
    assert binomtest(round(dense["value"] * number), number, chance, alternative="greater").pvalue < 1e-3
    assert pruned["versus"]["dense"]["difference"] < -0.1
    assert pruned["versus"]["dense"]["high"] < 0
