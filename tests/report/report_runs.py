"""Records to compare, made by hand."""

from linearpatch.report.quantities import entries_of
from linearpatch.report.rows import merged, rows_of_run, told_apart
from linearpatch.results.files import write_record
from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import (
    CalibrationSection,
    DistillationSection,
    EnvironmentSection,
    ModelSection,
    PatchSection,
    PointSection,
    PruningSection,
    SiteSection,
)

PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0"}


def metric(value, **more):
    known = {"stderr": 0.5, "n": 10, "protocol": "windows of 8 tokens", "token_hash": "0123456789", "headline": True}
    return Metric(value, **{**known, **more})


def share(value, task, **more):
    return metric(
        value, **{"stderr": 0.01, "unit": "share", "counted": "questions", "protocol": task, "headline": False, **more}
    )


def answers(**tasks):
    """Metrics of an evaluation `qa` with the average of the paper."""
    found = {f"qa/{task}/{kind}": share(value, task) for (task, kind), value in
             ((name.split("__"), value) for name, value in tasks.items())}  # fmt: skip
    mean = sum(one.value for one in found.values()) / len(found)
    return {**found, "qa/paper": share(mean, "mean over 2 tasks", parts=list(found), headline=True)}


def record(pruner="sleb", patch="rotate", removed=(3, 4, 9), seed=0, model="tiny", config=None, **stages):
    """A completed run; stages are perplexities, or metrics by name."""
    stages = stages or {"dense": 10.0, "pruned": 20.0, "patched": 15.0}
    metrics = {
        stage: value if isinstance(value, dict) else {"ppl/wikitext2": metric(value)} for stage, value in stages.items()
    }
    curve = [PointSection(0, None, 2.0), PointSection(1, 1.9), PointSection(2, 1.5, 1.4)]
    return Record(
        run_id=f"{model}-{pruner}-{len(removed)}-{patch}-{seed}-{len(str(config))}",
        group="g",
        command=f"linearpatch run pruner={pruner}",
        seed=seed,
        config={"choices": {"model": model}, "seed": seed, **(config or {})},
        status="completed",
        model=ModelSection(model, "f", 12, 10_000_000, "float32", "a note"),
        calibration=CalibrationSection(notes=["another note"]),
        pruning=PruningSection(
            pruner, list(removed), [(3, 5), (9, 10)], 2_000_000, 0.2,
            scores=LayerScores("1 - cosine", values=[0.1 * n for n in range(12)]),
        ),
        patch=PatchSection(patch, 500_000, [SiteSection(3, 5, error_before=0.2, error_after=0.1)]),
        distillation=DistillationSection("output_kl", 500_000, 2, curve=curve) if "distilled" in stages else None,
        metrics=metrics,
        timings_s={"rank": 1.5},
        peak_memory_bytes={"rank": 2**20},
        environment=EnvironmentSection(PACKAGES),
    )  # fmt: skip


def entries(*records):
    return entries_of(told_apart(merged(row for one in records for row in rows_of_run(one))))


def write(folder, *records):
    for one in records:
        write_record(one, folder / one.run_id)
    return folder


def line(table, *labels):
    """The texts of the cells of the only line that has all these labels."""
    found = [one for one in table.lines if set(labels) <= set(one.labels)]
    assert len(found) == 1, [one.labels for one in table.lines]
    return [cell.text for cell in found[0].cells]


def best(table):
    return [cell.text for one in table.lines for cell in one.cells if cell.best]
