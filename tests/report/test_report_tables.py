"""Tables against values computed by hand, and as Markdown, LaTeX and CSV."""

import io

import pandas
import pytest
from report_runs import answers, best, entries, line, metric, record, share, write_grid

from linearpatch.report.csv_files import csv_table
from linearpatch.report.latex import latex_table
from linearpatch.report.layouts import paper_tables, retained_table
from linearpatch.report.markdown import escape, markdown_table
from linearpatch.report.reading import read_runs
from linearpatch.report.report import compare_runs
from linearpatch.results.metric import Retained


def tables(*records):
    return {table.name: table for table in paper_tables(entries(*records))}


def perplexities(**corpora):
    return {f"ppl/{name}": metric(value) for name, value in corpora.items()}


def two_corpora():
    return record(
        dense=perplexities(ptb=20.0, wikitext2=10.0),
        pruned=perplexities(ptb=60.0, wikitext2=30.0),
        patched=perplexities(ptb=40.0, wikitext2=24.0),
    )


def test_perplexity_has_the_papers_order_the_average_and_the_ratio_to_dense():
    table = tables(two_corpora())["perplexity"]
    assert table.columns == ("WikiText-2", "PTB", "Avg.", "Avg. × dense", "Parameters, M")
    assert line(table, "dense") == ["10.00 ± 0.50", "20.00 ± 0.50", "15.00 ± 0.35", "", "10.0"]
    assert line(table, "none") == ["30.00 ± 0.50", "60.00 ± 0.50", "45.00 ± 0.35", "3.00", "8.0"]
    assert line(table, "rotate") == ["24.00 ± 0.50", "40.00 ± 0.50", "32.00 ± 0.35", "2.13", "8.5"]


def test_the_best_and_what_cant_be_told_from_it_are_bold_and_dense_never():
    other = record(pruner="tail", removed=(7, 8, 9), pruned=perplexities(ptb=39.0, wikitext2=25.5))
    alone = record(removed=(3,), pruned=perplexities(ptb=1.0, wikitext2=1.0))
    table = tables(two_corpora(), other, alone)["perplexity"]
    # Standard errors of 0.5: differences up to 1.96 · √0.5 = 1.39 are none; those of averages up to 0.98.
    assert best(table) == ["24.00 ± 0.50", "40.00 ± 0.50", "32.00 ± 0.35", "39.00 ± 0.50", "32.25 ± 0.35"]
    assert any("aren't distinguishable" in note for note in table.notes)


def test_where_windows_are_the_same_their_paired_difference_decides(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt", "sleb"), patches=("none", "rotate"), sizes=(5,))
    found = read_runs([tmp_path])
    comparison = compare_runs(found)
    table = next(table for table in comparison.tables if table.name == "perplexity")
    values = {(one.labels[2], one.labels[3]): one.cells[0] for one in table.lines}
    first, second = values["shortgpt", "rotate"], values["sleb", "rotate"]
    assert abs(first.value - second.value) < 1.96 * (first.stderr**2 + second.stderr**2) ** 0.5
    assert (first.best, second.best) == (True, False)  # apart, window by window


def test_equal_numbers_are_equally_good():
    table = tables(record(), record(pruner="tail", pruned=15.001), record(pruner="taylor", pruned=30.0))["perplexity"]
    assert best(table) == ["15.00 ± 0.50", "15.00 ± 0.50"]


def test_where_nothing_can_be_told_apart_nothing_is_bold():
    assert best(tables(record(pruned=15.5, patched=14.8))["perplexity"]) == []


def asked(dense, pruned, patched):
    run = record(dense=answers(**dense), pruned=answers(**pruned), patched=answers(**patched))
    run.retained = {
        "pruned": {"mean_of_ratios": {"qa/paper": Retained(0.8, 0.75, 0.85)},
                   "ratio_of_means": {"qa/paper": Retained(0.79)}},
        "patched": {"mean_of_ratios": {"qa/paper": Retained(0.9)}, "ratio_of_means": {"qa/paper": Retained(0.91)}},
    }  # fmt: skip
    return run


@pytest.fixture
def questions():
    return asked(
        {"boolq__acc": 0.8, "arc_easy__acc_norm": 0.6},
        {"boolq__acc": 0.6, "arc_easy__acc_norm": 0.5},
        {"boolq__acc": 0.7, "arc_easy__acc_norm": 0.55},
    )


def test_tasks_have_the_papers_names_with_average_and_retained_performance(questions):
    table = tables(questions)["qa"]
    assert table.columns == ("ARC-e", "BoolQ", "Avg.", "RP", "Parameters, M")
    assert line(table, "dense") == ["60.00 ± 1.00", "80.00 ± 1.00", "70.00 ± 1.00", "100.00", "10.0"]
    assert line(table, "none") == ["50.00 ± 1.00", "60.00 ± 1.00", "55.00 ± 1.00", "80.00", "8.0"]
    assert line(table, "rotate") == ["55.00 ± 1.00", "70.00 ± 1.00", "62.50 ± 1.00", "90.00", "8.5"]
    assert best(table) == ["55.00 ± 1.00", "70.00 ± 1.00", "62.50 ± 1.00", "90.00"]


def test_of_a_tasks_two_metrics_acc_norm_stands_for_it():
    run = record(dense=answers(arc_easy__acc=0.7, arc_easy__acc_norm=0.6), pruned=answers(arc_easy__acc=0.7))
    assert line(tables(run)["qa"], "dense")[0] == "60.00 ± 1.00"


def test_where_the_average_is_of_acc_the_columns_are_too():
    parts = {f"smoke/{task}/acc": share(value, task) for task, value in {"facts": 0.6, "pronouns": 0.8}.items()}
    other = {f"smoke/{task}/acc_norm": share(0.1, task) for task in ("facts", "pronouns")}
    whole = {"smoke/acc": share(0.7, "mean over the questions of 2 tasks", parts=list(parts))}
    run = record(dense=other | parts | whole, pruned=other | parts | whole)
    table = tables(run)["smoke"]
    assert table.columns == ("facts", "pronouns", "Avg.", "RP", "Parameters, M")
    assert line(table, "dense") == ["60.00 ± 1.00", "80.00 ± 1.00", "70.00 ± 1.00", "100.00", "10.0"]


def test_both_definitions_of_retained_performance_stand_side_by_side(questions):
    table = retained_table(entries(questions))
    assert table.columns == ("qa/paper, mean of ratios", "qa/paper, ratio of means")
    assert line(table, "none") == ["80.00 [75.00, 85.00]", "79.00"]


def test_mmlu_shows_its_groups_and_the_whole():
    def mmlu(value):
        whole = metric(value, unit="share", headline=True, parts=["mmlu/anatomy/acc"])
        return {"mmlu/anatomy/acc": metric(value, unit="share"), "mmlu/stem/acc": whole, "mmlu/acc": whole}

    table = tables(record(dense=mmlu(0.6), pruned=mmlu(0.4)))["mmlu"]
    assert table.columns == ("STEM", "Avg.", "RP", "Parameters, M")
    assert line(table, "dense") == ["60.00 ± 50.00", "60.00 ± 50.00", "100.00", "10.0"]


def test_speed_shows_rates_with_their_ratio_to_dense():
    def speed(rate, seconds, **versus):
        return {
            "speed/prefill_tokens_per_s": metric(rate, unit="1/s", versus=versus),
            "speed/prefill_s": metric(seconds, unit="s", stderr=0.0001),
        }

    run = record(
        dense=speed(100.0, 0.02),
        pruned=speed(150.0, 0.01, dense={"ratio": 1.5, "low": 1.4, "high": 1.6}),
        patched=speed(140.0, 0.015),
    )
    table = tables(run)["speed"]
    assert table.columns == ("Prefill tokens/s", "× dense", "Prefill ms")
    assert line(table, "none") == ["150.0 ± 0.5", "1.50", "10.0 ± 0.1"]
    assert best(table) == ["150.0 ± 0.5", "10.0 ± 0.1"]


def test_seeds_are_shown_as_mean_and_standard_deviation():
    runs = [record(seed=seed, patched=value) for seed, value in enumerate((14.0, 15.0, 19.0))]
    table = tables(*runs)["perplexity"]
    assert line(table, "rotate") == ["16.00 ± 2.65", "8.5"]
    assert "mean ± standard deviation over seeds" in table.notes


def test_numbers_measured_differently_carry_letters_and_dont_compete():
    other = {"patched": {"ppl/wikitext2": metric(9.0, protocol="windows of 4 tokens")}}
    table = tables(record(), record(patch="lstsq", **other))["perplexity"]
    marks = {one.labels[3]: one.cells[0].mark for one in table.lines if one.labels[2] == "sleb"}
    assert marks["none"] == marks["rotate"] != marks["lstsq"] != ""
    assert best(table)[0] == "15.00 ± 0.50"
    assert any("aren't comparable" in note for note in table.notes)
    assert any(note.startswith(f"({marks['lstsq']}) WikiText-2") and "windows of 4" in note for note in table.notes)


def test_other_models_have_other_tokens_and_no_letters():
    other = {"dense": {"ppl/wikitext2": metric(9.0, n=11, token_hash="abc")}}
    table = tables(record(dense=10.0), record(model="other", **other))["perplexity"]
    assert {cell.mark for one in table.lines for cell in one.cells} == {""}
    assert "WikiText-2: windows of 8 tokens, 10 tokens (01234567)" in table.notes
    assert "WikiText-2: windows of 8 tokens, 11 tokens (abc)" in table.notes


def test_versions_are_told():
    assert tables(record())["perplexity"].notes[-1] == "torch 2.13.0, transformers 5.23.0"


def test_markdown_shows_names_as_they_are():
    table = tables(record(pruner="a|b", patch="<img src=x onerror=alert(1)>"))["perplexity"]
    text = markdown_table(table)
    assert "| a\\|b |" in text
    assert "\\<img src=x" in text
    assert "| **15.00 ± 0.50** |" in text
    assert "| --- | ---: | --- |" in text  # sizes stand below each other
    assert escape("[x](javascript:y) `z` a_b\n# c") == "[x\\](javascript:y) \\`z\\` a_b # c"


def test_latex_is_booktabs_with_everything_escaped():
    text = latex_table(tables(record(pruner="50%_of $x^2 {~}"))["perplexity"])
    assert r"50\%\_of \$x\textasciicircum{}2 \{\textasciitilde{}\}" in text
    assert r"\textbf{15.00 $\pm$ 0.50}" in text
    assert r"$\times$ dense" in text
    assert text.count(r"\midrule") == 2  # after the head, after dense
    heads = next(row for row in text.splitlines() if "WikiText-2 &" in row)
    assert heads.count("&") + 1 == len(text.split(r"\begin{tabular}{")[1].split("}")[0])


def test_csv_holds_numbers_as_they_are():
    runs = [record(seed=seed, patched=value) for seed, value in enumerate((14.0, 15.0))]
    frame = pandas.read_csv(io.StringIO(csv_table(tables(*runs)["perplexity"])))
    found = frame[frame["patch"] == "rotate"].iloc[0]
    assert found["ppl/wikitext2"] == 14.5
    assert found["ppl/wikitext2 sd"] == pytest.approx(0.5**0.5)


def test_csv_starts_no_formula():
    assert "'=HYPERLINK" in csv_table(tables(record(pruner="=HYPERLINK(1)"))["perplexity"])
