"""Records to compare, made by hand."""

from dataclasses import replace

import numpy
from safetensors.numpy import save_file

from linearpatch.report.quantities import entries_of
from linearpatch.report.rows import merged, rows_of_run, with_distinguishing_settings
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
    return entries_of(with_distinguishing_settings(merged(row for one in records for row in rows_of_run(one))))


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


def write_grid(folder, pruners=("shortgpt", "sleb", "streamline"), patches=("none", "rotate", "lstsq"), sizes=(3, 5, 7),
               windows=24):  # fmt: skip
    """Records as a sweep leaves them, with the loss of each window of text beside them; made by formulas."""
    text = numpy.sin(numpy.arange(windows)) / 2  # some windows are harder, whichever the model
    for at, pruner in enumerate(pruners):
        for number, patch in enumerate(patches):
            for size in sizes:
                harm = {"dense": 0.0, "pruned": 0.1 * size * (1 + 0.2 * at)}
                if patch != "none":
                    harm["patched"] = harm["pruned"] * (1 - 0.25 * number)
                losses = {
                    stage: 2.5 + text + value * (1 + 0.3 * numpy.cos(numpy.arange(windows) * (2 + at + turn)))
                    for stage, value in harm.items()
                    for turn in [number if stage == "patched" else 0]
                }
                stages = {
                    stage: {
                        "ppl/wikitext2": metric(
                            float(numpy.exp(own.mean())),
                            stderr=float(numpy.exp(own.mean()) * own.std(ddof=1) / windows**0.5),
                            n=windows * 511, protocol="joined text, disjoint windows of 512 tokens",
                        ),
                        "speed/decode_step_s": metric(
                            0.02 * (1 - size / 30 * (stage != "dense")), unit="s", stderr=None
                        ),
                        "speed/peak_memory_bytes": metric(
                            2**28 * (1 - size / 40 * (stage != "dense")), unit="bytes", stderr=None
                        ),
                    }
                    for stage, own in losses.items()
                }  # fmt: skip
                first = 2 + at
                one = record(pruner, patch, range(first, first + size), **stages)
                one.pruning = replace(one.pruning, interfaces=[(first, first + size)],
                                      num_parameters_removed=650_000 * size)  # fmt: skip
                write_record(one, folder / one.run_id)
                arrays = {f"{stage}/ppl/wikitext2/windows": own for stage, own in losses.items()}
                save_file(arrays, folder / one.run_id / "diagnostics.safetensors")
    return folder
