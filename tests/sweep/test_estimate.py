"""Rough costs of jobs: what they count, told before anything is computed."""

import pytest

from linearpatch.config import compose_experiment
from linearpatch.sweep.estimate import START_S, Size, _estimate
from linearpatch.sweep.plan import Asked, plan_sweep

SIZE = Size(parameters=10**8, layers=30, hidden=576, itemsize=4)


def tokens(*overrides):
    """Passes of the model over so many tokens, at the rate that makes one a second of two operations a weight."""
    experiment = compose_experiment(["pruner=patch_aware", "num_pruned_layers=5", *overrides])
    (job,) = plan_sweep([Asked((), experiment)], "label").jobs
    return _estimate(job, experiment, SIZE, rate=4e8).seconds - START_S


def test_half_of_the_layers_run_for_each_window_and_each_finalist_on_what_is_held_out():
    found = [
        tokens("eval=[]", f"calibration.held_out_blocks={held_out}", "pruner.draft_share=0.5", "pruner.finalists=2")
        for held_out in (4, 64)
    ]
    assert found[1] - found[0] == pytest.approx((0.5 * 26 * 0.5 + 0.5 * 2) * 60 * 1024)


def test_comparing_a_fit_costs_two_passes_over_what_is_held_out():
    found = [tokens("pruner=streamline", "eval=[]", f"patch.compare={compare}") for compare in ("false", "true")]
    assert found[1] - found[0] == pytest.approx(2 * 16 // 8 * 1024)


def test_a_whole_text_is_as_long_as_its_corpus(tmp_path):
    (tmp_path / "text.txt").write_text(12_000 * "word ")
    text = ("corpus=text", f"corpus.path={tmp_path}/text.txt")
    read = [tokens(*corpus) - tokens(*corpus, "eval=[]") for corpus in (text, ["corpus=pydoc"], ["corpus=wikitext2"])]
    stages = 1 + 2 * 25 / 30
    assert read == pytest.approx([5_000 * stages, 40_000 * stages, 300_000 * stages])


def test_questions_count_as_many_as_there_are_or_may_be_asked():
    nothing = tokens("eval=[]")
    stages = 1 + 2 * 25 / 30
    asked = {
        "eval=[smoke]": 206 * 30,
        "eval=[smoke] eval.smoke.limit=10": 40 * 30,
        "eval=[mmlu]": 14_042 * 660,
        "eval=[mmlu] eval.mmlu.limit=20": 57 * 20 * 660,
        "eval=[tasks] eval.tasks.tasks=[copa,of_my_own]": 2_100 * 160,
    }
    found = {overrides: tokens(*overrides.split()) - nothing for overrides in asked}
    assert found == pytest.approx({overrides: count * stages for overrides, count in asked.items()})
