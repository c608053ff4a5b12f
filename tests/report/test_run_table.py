"""What a run and a sweep print at their end."""

import io
from dataclasses import replace

import pytest
from report_runs import metric, record
from rich.console import Console

from linearpatch.report.run_table import run_table, sweep_tables
from linearpatch.report.terminal import rich_table
from linearpatch.results.display import value_text
from linearpatch.results.metric import Retained
from linearpatch.text import layer_list


def printed(*tables):
    console = Console(file=io.StringIO(), width=160)
    console.print(*map(rich_table, tables))
    return console.file.getvalue()


def row(text, word):
    line = next(line for line in text.splitlines() if word in line and "│" in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_a_runs_table_shows_each_stage_against_dense():
    text = printed(run_table(record()))
    assert row(text, "ppl/wikitext2") == [
        "ppl/wikitext2",
        "10.00 ± 0.50",
        "20.00 ± 0.50",
        "2.00 ×",
        "15.00 ± 0.50",
        "1.50 ×",
    ]
    assert row(text, "parameters") == ["parameters", "10.0 M", "8.0 M", "-20.0%", "8.5 M", "-15.0%"]
    assert "3-4, 9" in text
    assert "a note" in text
    assert "another note" in text
    assert "ppl/wikitext2: windows of 8 tokens, 10 tokens" in text


def test_a_sweep_shows_each_model_once_and_its_layers():
    records = [
        record("sleb", "none", dense=10.0, pruned=20.0),
        record("sleb", "rotate"),
        record("tail", "rotate", removed=(8, 9, 10), dense=10.0, pruned=40.0, patched=30.0),
    ]
    text = printed(*sweep_tables(records))
    assert text.count("20.00") == 1
    assert row(text, "15.00") == ["tiny", "3/12", "sleb", "rotate", "15.00 ± 0.50", "1.50", "8.5"]
    assert row(text, "40.00") == ["tiny", "3/12", "tail", "none", "40.00 ± 0.50", "4.00", "8.0"]
    assert row(text, "8-10") == ["tiny", "3/12", "Tail", "8-10"]
    assert "a note" in text
    assert "another note" in text


def test_a_metric_without_value_says_so():
    broken = record()
    broken.metrics["pruned"]["ppl/wikitext2"] = metric(None, reason="the value is inf")
    assert row(printed(run_table(broken)), "ppl/wikitext2")[2] == "not finite"


def test_a_run_that_failed_early_is_no_line_of_the_comparison():
    failed = record()
    failed.status, failed.model, failed.pruning = "failed", None, None
    assert "15.00" in printed(*sweep_tables([failed, record()]))
    assert sweep_tables([failed]) == []


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
    pruned = answered.metrics["pruned"]
    pruned["qa/paper"] = replace(pruned["qa/paper"], versus={"dense": difference})
    answered.retained = {
        "pruned": {
            "mean_of_ratios": {"qa/paper": Retained(0.9, 0.85, 0.95)},
            "ratio_of_means": {"qa/paper": Retained(0.88)},
        }
    }
    text = printed(run_table(answered))
    assert row(text, "  a/acc %")[1] == "25.00 ± 1.00"
    assert row(text, "  paper %")[:4] == ["paper %", "50.00 ± 1.00", "50.00 ± 1.00", "-5.0 [-8.0, -2.0]"]
    assert row(text, "mean of ratios")[1:4] == ["100", "", "90.0 [85.0, 95.0]"]
    assert row(text, "ratio of means")[1:4] == ["100", "", "88.0"]
    assert "qa/a: windows of 8 tokens, 10 questions" in text

    text = printed(*sweep_tables([answered]))
    assert "Question answering Avg." in text
    assert row(text, "20.00")[6:8] == ["50.00 ± 1.00", "90.00"]


@pytest.mark.parametrize(
    ("versus", "compared"),
    [
        ({"difference": -0.05, "low": -0.08, "high": -0.02}, "patched is worse than pruned: -5.0 [-8.0, -2.0]"),
        ({"difference": -0.05, "low": -0.12, "high": 0.02}, "patched against pruned -5.0 [-12.0, 2.0]"),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3}, "patched is worse than pruned: 1.20 × [1.10, 1.30]"),
        ({"ratio": 0.8, "low": 0.7, "high": 0.9}, "patched against pruned 0.80 × [0.70, 0.90]"),
    ],
)
def test_a_patch_that_does_harm_is_called_that(versus, compared):
    answered = record()
    name = "ppl/wikitext2" if "ratio" in versus else "qa/paper"
    for stage in answered.metrics:
        answered.metrics[stage] |= accuracies(qa__a__acc=0.25)
        answered.metrics[stage]["qa/paper"] = replace(answered.metrics[stage]["qa/paper"], headline=True)
    patched = answered.metrics["patched"]
    patched[name] = replace(patched[name], headline=True, versus={"pruned": versus})
    assert f"{name}: {compared}" in printed(run_table(answered))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ridge": "auto", "gain": "matched", "fall_back": True, "weighting": "capped"}, "refit_auto"),
        ({"ridge": "auto", "gain": "matched", "fall_back": False}, "refit"),
        ({}, "refit"),
        ("of another package", "refit"),
    ],
)
def test_a_choice_that_was_typed_is_named(settings, name):
    refitted = record(patch="refit")
    refitted.config["patch"] = settings
    assert f", patch {name}" in printed(run_table(refitted))


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
    assert "qa: no data for piqa " in text
    assert "piqa/acc" not in text


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("share", 0.5, "50.00"), ("bytes", 3 * 2**20, "3 MiB"), ("s", 0.0123, "12.3 ms"), ("1/s", 71.23, "71.2"),
        ("FLOP", 2.5e9, "2.5 GFLOP"), ("count", 134_515_008, "134.5 M"), ("", 12.345, "12.35"), ("", 0.0123, "0.0123"),
    ],
)  # fmt: skip
def test_each_unit_is_shown_as_people_write_it(unit, value, shown):
    assert value_text(metric(value, stderr=None, unit=unit)) == shown


@pytest.mark.parametrize(("layers", "text"), [([], ""), ([3], "3"), ([3, 5, 4, 9], "3-5, 9")])
def test_layers_as_ranges(layers, text):
    assert layer_list(layers) == text
