import io

import pytest
from rich.console import Console

from linearpatch.results.record import Record
from linearpatch.results.tables import comparison_table, failures_table, layer_list, run_table


def metric(value, **more):
    return {"value": value, "stderr": 0.5, "n": 10, "protocol": "p", "token_hash": "h", **more}


def record(pruner="sleb", patch="rotate", removed=(3, 4, 9), **values):
    values = values or {"dense": 10.0, "pruned": 20.0, "patched": 15.0}
    return Record(
        run_id=f"{pruner}-{patch}", group="g", command="", seed=0, config={}, status="completed",
        model={"name": "tiny", "num_layers": 12, "num_parameters": 10_000_000, "note": "a note"},
        calibration={"notes": ["another note"]},
        pruning={"method": pruner, "removed_layers": list(removed), "num_parameters_removed": 2_000_000},
        patch={"method": patch, "num_parameters": 500_000},
        metrics={stage: {"ppl/w": metric(value)} for stage, value in values.items()},
    )  # fmt: skip


def printed(table):
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()


def row(text, word):
    line = next(line for line in text.splitlines() if word in line and "│" in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_a_runs_table_shows_each_stage_against_dense():
    text = printed(run_table(record()))
    assert row(text, "dense ") == ["dense", "10.00 ± 0.50", "1.00", "10.0 M"]
    assert row(text, "pruned ") == ["pruned", "20.00 ± 0.50", "2.00", "8.0 M (-20.0%)"]
    assert row(text, "patched ") == ["patched", "15.00 ± 0.50", "1.50", "8.5 M (-15.0%)"]
    assert "3-4, 9" in text
    assert "a note" in text
    assert "another note" in text
    assert "ppl/w: p, 10 tokens" in text


def test_a_comparison_shows_each_model_once():
    records = [
        record("sleb", "none", dense=10.0, pruned=20.0),
        record("sleb", "rotate"),
        record("tail", "rotate", removed=(8, 9, 10), dense=10.0, pruned=40.0, patched=30.0),
    ]
    text = printed(comparison_table(records))
    assert text.count("20.00") == 1
    assert row(text, "15.00") == ["sleb", "3-4, 9", "rotate", "15.00 ± 0.50", "1.50", "8.5 M (-15.0%)"]
    assert row(text, "40.00") == ["tail", "8-10", "none", "40.00 ± 0.50", "4.00", "8.0 M (-20.0%)"]


def test_runs_that_differ_in_a_setting_only_are_told_apart():
    plain, relative = record(patched=15.0, pruned=20.0, dense=10.0), record(patched=12.0, pruned=20.0, dense=10.0)
    plain.config = {"patch": {"weighting": "none"}, "output_dir": "a"}
    relative.config = {"patch": {"weighting": "relative"}, "output_dir": "b"}
    text = printed(comparison_table([plain, relative]))
    assert "patch.weighting=none" in row(text, "15.00")
    assert "patch.weighting=relative" in row(text, "12.00")
    assert text.count("20.00") == 1
    assert "output_dir" not in text


def test_a_metric_without_value_says_so():
    broken = record()
    broken.metrics["pruned"]["ppl/w"] = metric(None, reason="the value is inf")
    assert row(printed(run_table(broken)), "pruned ")[1] == "not finite"


def test_failures_are_listed_with_their_reasons():
    failed = record()
    failed.status, failed.error = "failed", "no such thing"
    assert "no such thing" in printed(failures_table([record(), failed]))
    assert failures_table([record()]) is None


@pytest.mark.parametrize(("layers", "text"), [([], ""), ([3], "3"), ([3, 5, 4, 9], "3-5, 9")])
def test_layers_as_ranges(layers, text):
    assert layer_list(layers) == text
