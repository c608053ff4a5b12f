"""Published figures beside measured ones."""

import pytest
from report_runs import answers, entries, line, record

from linearpatch.errors import DataError
from linearpatch.report.layouts import paper_tables
from linearpatch.report.published import HEAD, read_published
from linearpatch.report.with_published import beside_table
from linearpatch.results.metric import Retained

LINES = [
    "table 1,tiny,0,,,,ppl/wikitext2,5.5,a paper",
    "table 1,tiny,3,sleb,rotate,none,ppl/wikitext2,14.5,a paper",
    "table 1,tiny,3,sleb,rotate,none,ppl/c4,25.5,a paper",
    "table 1,tiny,3,sleb,rotate,none,ppl/average,20,a paper",
    "table 1,tiny,3,taylor,none,none,ppl/wikitext2,40,a paper",
    "table 1,other,5,sleb,none,none,ppl/wikitext2,7,a paper",
    "table 2,tiny,3,sleb,rotate,none,qa/boolq,71,a paper",
    "table 2,tiny,3,sleb,rotate,none,qa/retained,91,a paper",
]


def published(tmp_path, *lines, head=HEAD):
    file = tmp_path / "published.csv"
    file.write_text("\n".join([",".join(head), *lines]) + "\n")
    return read_published(file)


def measured():
    run = record()
    for stage, value in (("dense", 0.8), ("pruned", 0.6), ("patched", 0.7)):
        run.metrics[stage] |= answers(boolq__acc=value)
    run.retained = {"patched": {"mean_of_ratios": {"qa/paper": Retained(0.875)}}}
    return entries(run)


def test_lines_of_one_model_come_together(tmp_path):
    found = published(tmp_path, *LINES)
    assert [(one.model, one.num_removed, one.pruner, one.patch) for one in found] == [
        ("tiny", 0, "", ""), ("tiny", 3, "sleb", "rotate"), ("tiny", 3, "taylor", "none"), ("other", 5, "sleb", "none"),
    ]  # fmt: skip
    assert found[1].values == {
        "ppl/wikitext2": 14.5,
        "ppl/c4": 25.5,
        "ppl/average": 20,
        "qa/boolq": 71,
        "qa/retained": 91,
    }


def test_measured_and_published_stand_side_by_side_with_the_difference(tmp_path):
    table = beside_table(measured(), published(tmp_path, *LINES))
    assert line(table, "rotate", "ppl/wikitext2") == ["15.00", "14.50", "+0.50"]
    assert line(table, "rotate", "qa/boolq") == ["70.00", "71.00", "-1.00"]
    assert line(table, "rotate", "qa/retained") == ["87.50", "91.00", "-3.50"]
    assert line(table, "dense", "ppl/wikitext2") == ["10.00", "5.50", "+4.50"]
    assert not any("taylor" in one.labels for one in table.lines)
    assert any("a paper" in note for note in table.notes)


def test_seeds_stand_beside_published_figures_with_their_spread(tmp_path):
    runs = [record(seed=seed, patched=value) for seed, value in enumerate((14.0, 15.0, 19.0))]
    table = beside_table(entries(*runs), published(tmp_path, LINES[1]))
    assert line(table, "rotate") == ["16.00 ± 2.65", "14.50", "+1.50"]
    assert table.notes[0] == "mean ± standard deviation over seeds"


def test_published_lines_stand_in_the_papers_tables_marked_as_such(tmp_path):
    tables = {table.name: table for table in paper_tables(measured(), published(tmp_path, *LINES))}
    table = tables["perplexity"]
    assert table.columns == ("WikiText-2", "C4", "Avg.", "Parameters, M")
    assert line(table, "taylor", "published")[0] == "40.00"
    assert line(table, "rotate", "published") == ["14.50", "25.50", "20.00", ""]
    places = [one.labels[2:] for one in table.lines if one.labels[0] == "tiny"]
    assert places.index(("sleb", "rotate", "published")) == places.index(("sleb", "rotate", "")) + 1
    best = [cell.text for one in table.lines for cell in one.cells[:1] if cell.best]
    assert best == ["15.00 ± 0.50", "14.50"]  # measured with measured, published with published


def test_published_figures_alone_make_the_papers_tables(tmp_path):
    table = paper_tables([], published(tmp_path, *LINES))[0]
    assert len(table.lines) == 4
    assert line(table, "other", "published") == ["7.00", "", ""]


def test_without_a_common_model_nothing_stands_side_by_side(tmp_path):
    assert beside_table(measured(), published(tmp_path, LINES[4])) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,tiny,3,sleb,rotate,none,ppl/c4,nine,s", r"line 2: value is 'nine', not a number"),
        ("t,tiny,3,sleb,rotate,none,ppl/c4,nan,s", r"line 2: value is 'nan'"),
        ("t,tiny,x,sleb,rotate,none,ppl/c4,9,s", r"line 2: num_pruned_layers is 'x'"),
        ("t,tiny,-1,sleb,rotate,none,ppl/c4,9,s", r"line 2: num_pruned_layers is '-1'"),
        ("t,tiny,3,,rotate,none,ppl/c4,9,s", r"line 2: pruner is empty"),
        ("t,,3,sleb,rotate,none,ppl/c4,9,s", r"line 2: model and metric"),
        ("t,tiny,3,sleb", r"line 2: 9 columns are expected"),
        ("t,tiny,3,sleb,rotate,none,ppl/c4,9,s,more", r"line 2: 9 columns are expected"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        published(tmp_path, text)


def test_two_values_of_one_metric_are_rejected(tmp_path):
    with pytest.raises(DataError, match=r"line 3: ppl/wikitext2 of this model is 15 here and 14\.5 further up"):
        published(tmp_path, LINES[1], LINES[1].replace("14.5", "15"))


def test_further_columns_are_settings_that_must_match(tmp_path):
    runs = [
        record(config={"corpus": {"name": name}, "calibration": {"corpus": None, "num_blocks": blocks}}, patched=ppl)
        for name, blocks, ppl in (("c4", 64, 15.0), ("pile", 128, 14.0))
    ]
    lines = [LINES[1] + ",64.0,", LINES[1].replace("14.5", "16") + ",,pile", LINES[1].replace("14.5", "17") + ",256,"]
    found = published(tmp_path, *lines, head=[*HEAD, "calibration.num_blocks", "calibration.corpus.name"])
    table = beside_table(entries(*runs), found)
    assert line(table, "num_blocks=64, corpus=c4") == ["15.00", "14.50", "+0.50"]
    assert line(table, "num_blocks=128, corpus=pile") == ["14.00", "16.00", "-2.00"]
    assert len(table.lines) == 2


def test_a_missing_column_or_file_is_named(tmp_path):
    with pytest.raises(DataError, match="line 1: no column source"):
        published(tmp_path, head=HEAD[:-1])
    with pytest.raises(DataError, match="can't be read as CSV"):
        read_published(tmp_path / "nothing.csv")
