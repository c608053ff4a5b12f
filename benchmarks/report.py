"""A report over 500 runs: how long it takes to write, and its page to open."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Claim
from linearpatch.report.report import write_report
from linearpatch.results.files import write_record
from linearpatch.results.metric import Metric, Retained
from linearpatch.results.record import Record
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import EnvironmentSection, ModelSection, PatchSection, PruningSection, SiteSection

PRUNERS = ("shortgpt", "sleb", "streamline", "taylor")
PATCHES = ("none", "diag", "rotate", "lstsq", "mlp_lstsq")
COUNTS = (3, 5, 7, 9, 11)
SEEDS = range(5)
NUM_LAYERS = 32
TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "piqa", "winogrande", "wsc273", "race", "copa")
CORPORA = ("wikitext2", "c4", "ptb")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def claims() -> list[Claim]:
    """Written in at most 10 s; its page is there in at most 2 s, where there is a browser to measure with."""
    with TemporaryDirectory() as scratch:
        runs, report = Path(scratch, "runs"), Path(scratch, "report")
        records = list(synthetic_records())
        for record in records:
            write_record(record, runs / record.run_id)
        started = time.perf_counter()
        write_report([runs], report)
        written = time.perf_counter() - started
        page = report / "report.html"
        detail = f"{len(records)} records, {len(records[-1].metrics['dense'])} metrics a stage"
        claims = [Claim("write the report", written, 10, "s", detail)]
        size = f"{page.stat().st_size / 2**20:.1f} MiB, headless Chromium"
        for what, seconds in seconds_to_open(page).items():
            claims.append(Claim(f"open its page: {what}", seconds, 2, "s", size))
    return claims


def synthetic_records() -> Iterator[Record]:
    """500 records as a sweep over pruners, patches, numbers of layers and seeds would leave them; made by formulas."""
    for pruner, patch, count, seed in itertools.product(PRUNERS, PATCHES, COUNTS, SEEDS):
        yield synthetic_record(pruner, patch, count, seed)


def synthetic_record(pruner: str, patch: str, count: int, seed: int) -> Record:
    """A record with perplexities, tasks, speeds and what is retained."""
    start = 10 + 2 * PRUNERS.index(pruner) + seed % 2
    removed = list(range(start, start + count))
    noise = math.sin(7 * seed + 3 * count + len(patch))
    damage = {
        "dense": 0.0,
        "pruned": 0.12 * count + 0.01 * noise,
        "patched": 0.12 * count * (1 - 0.12 * PATCHES.index(patch)) + 0.01 * noise,
    }
    if patch == "none":
        del damage["patched"]
    choices = {"model": "llama2_7b", "corpus": "wikitext2", "pruner": pruner, "patch": patch, "distill": "none"}
    name = f"llama2_7b-{pruner}-{count}-{patch}-{seed}"
    return Record(
        run_id=name,
        group="bench",
        command=f"linearpatch run model=llama2_7b pruner={pruner} num_pruned_layers={count} patch={patch} seed={seed}",
        seed=seed,
        config={
            "choices": choices,
            "model": {"name": "llama2_7b", "dtype": "float16", "path": "meta-llama/Llama-2-7b-hf"},
            "corpus": {"name": "wikitext2", "calibration": "train", "evaluation": "test"},
            "calibration": {"num_blocks": 128, "block_length": 2048},
            "patch": {"sites": "one_per_interface"},
            "num_pruned_layers": count,
            "seed": seed,
        },
        status="completed",
        model=ModelSection("llama2_7b", "f", NUM_LAYERS, 6_738_415_616, "float16"),
        pruning=PruningSection(
            pruner, removed, [(start, start + count)], count * 202_383_360, 0.03 * count,
            scores=LayerScores("1 - cosine", values=[0.1 + abs(at - start) / NUM_LAYERS for at in range(NUM_LAYERS)]),
        ),
        patch=PatchSection(
            patch, 0 if patch == "none" else 4096**2,
            [SiteSection(start, start + count, error_before=0.2, error_after=0.1)],
        ),
        metrics={stage: _metrics(harm) for stage, harm in damage.items()},
        retained={stage: _retained(harm) for stage, harm in damage.items() if stage != "dense"},
        timings_s={"rank": 30.0, "fit": 2.0},
        peak_memory_bytes={"rank": 2**34, "fit": 2**34},
        environment=EnvironmentSection({"torch": "2.13.0", "transformers": "5.23.0"}),
    )  # fmt: skip


def seconds_to_open(page: Path) -> dict[str, float]:
    """Time until a page can be used, and shows all plots, in a running browser; nothing without one and playwright."""
    browser_file = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if browser_file is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("body[data-ready=all]", timeout=60_000)
        marks = {"filters and table": "lines", "all plots": "all"}
        seconds = {
            what: tab.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime") / 1000
            for what, mark in marks.items()
        }
        browser.close()
    return seconds


def _metrics(harm: float) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for at, corpus in enumerate(CORPORA):
        metrics[f"ppl/{corpus}"] = _metric(
            (5.5 + 2 * at) * math.exp(harm), 0.1, "windows of 2048 tokens", headline=True
        )
    values = []
    for at, task in enumerate(TASKS):
        values.append(0.3 + (0.4 + 0.02 * at) * math.exp(-harm / 3))
        for kind in ("acc", "acc_norm"):
            protocol = f"lm_eval 0.4.13, {task} v1.0, 0-shot"
            metrics[f"qa/{task}/{kind}"] = _metric(values[-1], 0.01, protocol, unit="share")
    parts = [f"qa/{task}/acc_norm" for task in TASKS]
    average = sum(values) / len(values)
    metrics["qa/paper"] = _metric(average, 0.004, "mean over 9 tasks", unit="share", headline=True, parts=parts)
    ratio = {"ratio": 1 + harm / 10, "low": 1.0, "high": 1.1 + harm / 10}
    for phase in ("prefill", "decode"):
        metrics[f"speed/{phase}_tokens_per_s"] = _metric(
            1000 * (1 + harm / 10), 5.0, "batch 1, 512 tokens", unit="1/s", headline=True, versus={"dense": ratio}
        )
    return metrics


def _metric(value: float, stderr: float, protocol: str, **more: Any) -> Metric:
    counted = "questions" if more.get("unit") == "share" else "tokens"
    return Metric(value, stderr, 2000, protocol, "0123456789abcdef", counted=counted, **more)


def _retained(harm: float) -> dict[str, dict[str, Retained]]:
    share = math.exp(-harm / 3)
    value = {"qa/paper": Retained(share, share - 0.02, share + 0.02)}
    return {"mean_of_ratios": value, "ratio_of_means": value}
