"""What reports say of runs that removed sublayers."""

from pathlib import Path

from report_runs import entries, record

from linearpatch.report.figures.all import draw
from linearpatch.report.layouts import layers_table
from linearpatch.report.names import removed_words
from linearpatch.report.reading import Run
from linearpatch.report.run_table import run_table
from linearpatch.results.scores import LayerScores, SearchStep
from linearpatch.results.sections import PruningSection


def of_sublayers(unit, removed, scores, **stages):
    one = record("shortgpt", removed=(), config={"pruner": {"unit": unit}}, **stages)
    one.pruning = PruningSection(
        "shortgpt", [], [(3, 3.5), (5.5, 6)], 1_000_000, 0.1, scores=scores, removed=list(removed)
    )
    return one


def test_reports_name_sublayers_and_count_them():
    attention = of_sublayers(
        "attention", ("3.attention", "7.attention"), LayerScores("influence", "attention", [0.1 * n for n in range(12)])
    )
    steps = [SearchStep("3.attention", {"3.attention": 1.0, "5.mlp": 2.0}), SearchStep("5.mlp", {"5.mlp": 1.5})]
    either = of_sublayers("sublayer", ("3.attention", "5.mlp"), LayerScores("NLL", "sublayer", steps=steps))
    layers = record("shortgpt", removed=(3, 4))
    table = run_table(attention)
    assert "2 sublayers of 12 layers removed by llm_drop (attention 3, 7)" in table.title
    own = entries(attention, either, layers)
    names = {entry.name for entry in own}
    assert any(name.startswith("ShortGPT attention") for name in names)
    assert any(name.startswith("ShortGPT sublayer") for name in names)
    assert removed_words(entry.variant for entry in own) == "layers or sublayers removed"
    cells = {line.cells[0].text for line in layers_table(own).lines}
    assert {"attention 3, 7", "attention 3; MLP 5", "3-4"} <= cells
    drawings = draw(own, [Run(one, Path("x"), ()) for one in (attention, either, layers)])
    captions = " ".join(drawing.caption for drawing in drawings)
    assert "A, M: only the attention, only the MLP" in captions
