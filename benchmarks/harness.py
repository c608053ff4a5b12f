"""Tasks on the model in memory, against lm_eval on the same model, requests and batch size."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, embedded_model
from linearpatch.config import compose_experiment
from linearpatch.data.reader import Reader
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.tasks import Tasks
from linearpatch.models.model import LoadedModel
from linearpatch.storage.cache import Cache

TASKS = ("arc_easy", "arc_challenge", "mmlu_marketing", "mmlu_nutrition")
QUESTIONS = 200
BATCH = 16
FEW_SHOT = ("mmlu_marketing", 5, 30)  # task, examples, questions


def claims() -> list[Claim]:
    """Four tasks of 200 questions in at most 1.1 × lm_eval's time; shared few-shot prefixes against none.

    ARC and MMLU are read from `LINEARPATCH_DATASETS`; without it the smoke suite's four kinds are asked.
    """
    folder = Path(os.environ["LINEARPATCH_DATASETS"]) if "LINEARPATCH_DATASETS" in os.environ else None
    model = embedded_model()
    four = Tasks(list(TASKS) if folder else ["smoke"], num_fewshot=0, limit=QUESTIONS, batch_size=BATCH)
    ours, answers = _mine(four, model, folder)
    lm_eval_seconds, expected = _theirs(four, model, folder)
    claims = [
        Claim(
            f"{len(answers)} tasks, {sum(map(len, answers.values()))} questions: time / lm_eval",
            ours / lm_eval_seconds,
            1.1,
            "",
            f"{ours:.0f} s / {lm_eval_seconds:.0f} s, {', '.join(answers)}, zero-shot, batch size {BATCH}; "
            f"{_differing(answers, expected)} questions answered differently",
        )
    ]
    if folder:
        task, shots, questions = FEW_SHOT
        few_shot = Tasks([task], num_fewshot=shots, limit=questions, batch_size=BATCH)
        shared, with_sharing = _mine(few_shot, model, folder)
        apart, without = _mine(replace(few_shot, share_prefixes=False), model, folder)
        claims.append(
            Claim(
                f"{task}, {shots}-shot, {questions} questions: time with shared prefixes / without",
                shared / apart,
                1,
                "",
                f"{shared:.1f} s / {apart:.1f} s; {_differing(with_sharing, without)} questions answered differently",
            )
        )
    return claims


def _mine(settings: Tasks, model: LoadedModel, folder: Path | None) -> tuple[float, dict[str, list[float]]]:
    """Seconds, tasks and requests included, and the answers by task."""
    started = time.perf_counter()
    reader = Reader(compose_experiment(["corpus=pydoc"]).corpus, "evaluation", folder)
    answers: dict[str, list[float]] = {}
    for measurement in settings.prepare("qa", reader)(model, Cache()):
        (measured,) = measurement.run([Subject("dense", model.decoder, model.decoder)], lambda count: None)
        task = measurement.name.partition("/")[2]
        answers[task] = measured.questions[f"qa/{task}/acc"].tolist()
    return time.perf_counter() - started, answers


def _theirs(settings: Tasks, model: LoadedModel, folder: Path | None) -> tuple[float, dict[str, list[float]]]:
    """The same by lm_eval: its own model class and evaluation."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    from linearpatch.evaluation.harness.catalogue import select
    from linearpatch.evaluation.harness.data import load

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    started = time.perf_counter()
    tasks: dict[str, Any] = {
        entry.name: load(entry, folder, settings.num_fewshot) for entry in select(tuple(settings.tasks)).entries
    }
    lm = HFLM(pretrained=model.decoder.model, tokenizer=model.tokenizer, batch_size=BATCH)
    results = evaluator.evaluate(lm, {"tasks": tasks}, limit=settings.limit, bootstrap_iters=0)
    seconds = time.perf_counter() - started
    return seconds, {task: [sample["acc"] for sample in samples] for task, samples in results["samples"].items()}


def _differing(first: dict[str, list[float]], second: dict[str, list[float]]) -> int:
    return sum(a != b for task in first for a, b in zip(first[task], second[task], strict=True))
