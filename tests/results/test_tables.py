import io

import pytest
from rich.console import Console

from linearpatch.results.display import value_text
from linearpatch.results.record import Record
from linearpatch.results.tables import comparison_table, layer_list, run_table


def metric(value, **more):
    return {
        "value": value, "stderr": 0.5, "n": 10, "protocol": "p", "token_hash": "h", "reason": None, "headline": True,
        **more,
    }  # fmt: skip


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
    assert row(text, "ppl/w") == ["ppl/w", "10.00 ± 0.50", "20.00 ± 0.50", "2.00 ×", "15.00 ± 0.50", "1.50 ×"]
    assert row(text, "parameters") == ["parameters", "10.0 M", "8.0 M", "-20.0%", "8.5 M", "-15.0%"]
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
    assert row(text, "15.00") == ["sleb", "3-4, 9", "rotate", "15.00 ± 0.50", "1.50 ×", "8.5 M (-15.0%)"]
    assert row(text, "40.00") == ["tail", "8-10", "none", "40.00 ± 0.50", "4.00 ×", "8.0 M (-20.0%)"]


def test_runs_that_differ_in_a_setting_only_are_told_apart():
    plain, relative = record(patched=15.0, pruned=20.0, dense=10.0), record(patched=12.0, pruned=20.0, dense=10.0)
    plain.config = {"patch": {"weighting": "none"}, "output_dir": "a"}
    relative.config = {"patch": {"weighting": "relative"}, "output_dir": "b"}
    text = printed(comparison_table([plain, relative]))
    assert "patch.weighting=none" in row(text, "15.00")
    assert "patch.weighting=relative" in row(text, "12.00")
    assert text.count("20.00") == 1
    assert "output_dir" not in text


def test_two_protocols_carry_letters_and_each_pruned_model_has_a_section():
    records = []
    for length in (64, 128):
        for pruner in ("sleb", "tail"):
            one = record(pruner)
            one.config = {"eval": {"ppl": {"seq_len": length}}}
            for stage in one.metrics.values():
                stage["ppl/w"]["protocol"] = f"windows of {length}"
            records.append(one)
    text = printed(comparison_table(records))
    assert "(a) ppl/w: windows of 64, 10 tokens" in text
    assert "(b) ppl/w: windows of 128, 10 tokens" in text
    assert text.count("± 0.50 (a)") == text.count("± 0.50 (b)") == 5
    lines = [line.split("│")[1].strip() if "│" in line else "" for line in text.splitlines() if line[:1] in "│├"]
    assert lines == ["dense", "dense", "", "sleb", "sleb", "sleb", "sleb", "", "tail", "tail", "tail", "tail"]


def test_a_metric_without_value_says_so():
    broken = record()
    broken.metrics["pruned"]["ppl/w"] = metric(None, reason="the value is inf")
    assert row(printed(run_table(broken)), "ppl/w")[2] == "not finite"


def test_a_run_that_failed_early_is_no_row_of_the_comparison():
    failed = record()
    failed.status, failed.model, failed.pruning = "failed", {}, {}
    assert "15.00" in printed(comparison_table([failed, record()]))


def accuracies(**by_name) -> dict:
    found = {
        name.replace("__", "/"): metric(value, stderr=0.01, unit="share", counted="questions", headline=False)
        for name, value in by_name.items()
    }
    found["qa/paper"] = metric(0.5, stderr=0.01, unit="share", counted="questions", parts=list(found), protocol="mean")
    return found


def test_accuracies_are_shown_in_percent_with_differences_and_what_is_retained():
    answered = record()
    for stage in answered.metrics:
        answered.metrics[stage] |= accuracies(qa__a__acc=0.25, qa__a__acc_norm=0.5)
    difference = {"difference": -0.05, "low": -0.08, "high": -0.02}
    answered.metrics["pruned"]["qa/paper"]["versus"] = {"dense": difference}
    answered.retained = {
        "pruned": {
            "mean_of_ratios": {"qa/paper": {"value": 0.9, "low": 0.85, "high": 0.95}},
            "ratio_of_means": {"qa/paper": {"value": 0.88}},
        }
    }
    text = printed(run_table(answered))
    assert row(text, "  a/acc %")[1] == "25.0 ± 1.0"
    assert row(text, "  paper %")[:4] == ["paper %", "50.0 ± 1.0", "50.0 ± 1.0", "-5.0 [-8.0, -2.0]"]
    assert row(text, "mean of ratios")[1:4] == ["100", "", "90.0 [85.0, 95.0]"]
    assert row(text, "ratio of means")[1:4] == ["100", "", "88.0"]
    assert "qa/a: p, 10 questions" in text

    text = printed(comparison_table([answered]))
    assert "qa/paper %" in text
    assert "a/acc" not in text
    assert "pruned by sleb" in text
    assert row(text, "3-4, 9")[4:6] == ["50.0", "90.0 [85.0, 95.0]"]


def test_an_evaluation_with_very_many_metrics_shows_its_averages():
    answered = record()
    answered.metrics["dense"] |= accuracies(**{f"qa__task{number}__acc": 0.5 for number in range(30)})
    text = printed(run_table(answered))
    assert "task1" not in text
    assert "paper %" in text


def test_tasks_without_data_are_named_and_not_shown():
    answered = record()
    answered.metrics["dense"] |= {
        f"qa/piqa/{kind}": metric(None, n=0, protocol="piqa", reason="no data: offline") for kind in ("acc", "acc_norm")
    }
    text = printed(run_table(answered))
    assert "qa: no data for piqa\n" in text.replace(" \n", "\n").replace("  ", "")
    assert "piqa/acc" not in text


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("share", 0.5, "50.0"), ("bytes", 3 * 2**20, "3 MiB"), ("s", 0.0123, "12.3 ms"), ("1/s", 71.23, "71.2"),
        ("FLOP", 2.5e9, "2.5 GFLOP"), ("count", 134_515_008, "134.5 M"), ("", 12.345, "12.35"), ("", 0.0123, "0.0123"),
    ],
)  # fmt: skip
def test_each_unit_is_shown_as_people_write_it(unit, value, shown):
    assert value_text(metric(value, stderr=None, unit=unit)) == shown


@pytest.mark.parametrize(("layers", "text"), [([], ""), ([3], "3"), ([3, 5, 4, 9], "3-5, 9")])
def test_layers_as_ranges(layers, text):
    assert layer_list(layers) == text
