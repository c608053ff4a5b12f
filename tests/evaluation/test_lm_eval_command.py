"""Question by question: a run's answers against those of `lm_eval --model hf` on the checkpoint that it saved.

With real data (LINEARPATCH_DATASETS). LINEARPATCH_QUESTIONS sets the number of questions of each ARC task (20), a
twentieth of it, two at least, of each of three subjects of MMLU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pandas
import pytest

from linearpatch.cli import main

QUESTIONS = int(os.environ.get("LINEARPATCH_QUESTIONS", "20"))
OF_MMLU = max(2, QUESTIONS // 20)
TASKS = Path(lm_eval.tasks.__file__).parent
ARC = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
MMLU = ("anatomy", "marketing", "philosophy")


def local_task(datasets_dir: Path, task: str) -> str:
    """One of lm_eval's tasks with its data from local files, as YAML."""
    if task in ARC:
        file, folder = TASKS / "arc" / f"{task}.yaml", datasets_dir / "ai2_arc" / ARC[task]
        splits, change = {"test": folder / "test.jsonl"}, "training_split: null\nvalidation_split: null\n"
    else:
        file = TASKS / "mmlu" / "default" / f"mmlu_{task}.yaml"
        splits, change = {split: datasets_dir / "mmlu" / task / f"{split}.jsonl" for split in ("dev", "test")}, ""
    files = "".join(f"\n    {split}: {path.resolve()}" for split, path in splits.items())
    name = f"local_{task}"
    return (
        f"include: {file}\ntask: {name}\ndataset_path: json\ndataset_name: null\n{change}dataset_kwargs:\n"
        f"  data_files:{files}\n"
    )


def of_the_command(folder: Path, tasks: list[str], shots: int, limit: int, work: Path) -> dict[str, pandas.DataFrame]:
    """What lm_eval's own command gives for each question, by task."""
    command = [
        Path(sys.executable).with_name("lm_eval"), "--model", "hf", "--model_args",
        f"pretrained={folder},dtype=float32,trust_remote_code=True", "--tasks", ",".join(f"local_{t}" for t in tasks),
        "--include_path", work / "tasks", "--limit", str(limit), "--num_fewshot", str(shots), "--batch_size", "8",
        "--log_samples", "--output_path", work / f"out{shots}",
    ]  # fmt: skip
    environment = {**os.environ, "HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(word) for word in command], check=True, capture_output=True, env=environment)
    found = {}
    for task in tasks:
        (samples,) = (work / f"out{shots}").rglob(f"samples_local_{task}_*.jsonl")
        found[task] = pandas.DataFrame([json.loads(line) for line in samples.read_text().split("\n") if line])
    return found


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.embedded
def test_every_answer_is_that_of_lm_eval_on_the_saved_checkpoint(tmp_path, datasets_dir, session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    (tmp_path / "tasks").mkdir()
    for task in (*ARC, *MMLU):
        (tmp_path / "tasks" / f"local_{task}.yaml").write_text(local_task(datasets_dir, task))
    overrides = [
        "experiment=demo", "patch=rotate", "stages=[patched]", "save_model=true", f"output_dir={tmp_path}/D",
        "eval=[qa,mmlu]", "eval.qa.tasks=[arc_easy,arc_challenge]", f"eval.qa.limit={QUESTIONS}",
        f"eval.mmlu.tasks=[{','.join(f'mmlu_{subject}' for subject in MMLU)}]", f"eval.mmlu.limit={OF_MMLU}",
        f"datasets_dir={datasets_dir}", "tracker=none",
    ]  # fmt: skip
    assert main(["run", *overrides]) == 0
    table = pandas.read_parquet(tmp_path / "D" / "questions.parquet").set_index(["metric", "question"]).patched
    model = tmp_path / "D" / "model"
    expected = of_the_command(model, list(ARC), 0, QUESTIONS, tmp_path) | of_the_command(
        model, list(MMLU), 5, OF_MMLU, tmp_path
    )
    different = []
    for task, samples in expected.items():
        prefix = f"qa/{task}" if task in ARC else f"mmlu/{task}"
        for kind in ("acc", "acc_norm") if task in ARC else ("acc",):
            mine = table[f"{prefix}/{kind}"]
            assert len(mine) == len(samples)
            different += [
                (task, kind, q) for q, value in zip(samples.doc_id, samples[kind], strict=True) if mine[q] != value
            ]
    assert different == []
