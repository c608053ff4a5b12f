"""Plans of sweeps: what is shared, who waits for whom, what is done already; no model is loaded."""

import pytest

from linearpatch.config import compose_experiment
from linearpatch.errors import ConfigError
from linearpatch.results.files import write_record
from linearpatch.results.record import Record
from linearpatch.storage.files import make_folder
from linearpatch.sweep.plan import PlannedRun, plan_sweep

TINY = ("debug=tiny", "model=random", "num_pruned_layers=3")


def plan(*combinations, folder="S", **more):
    asked = []
    for combination in combinations:
        overrides = (*TINY, f"output_dir={folder}", *combination.split())
        asked.append(PlannedRun(overrides, compose_experiment(overrides)))
    return plan_sweep(asked, "label", **more)


def needs(found, name):
    """What a job of a plan needs, by kind of job."""
    (job,) = [job for job in found.jobs if name in job.name]
    return {needed.partition("-")[0] for needed in job.needs}


def shared(found):
    return [job.request.part for job in found.shared]


def test_what_two_runs_need_is_a_job_of_its_own():
    found = plan("pruner=sleb patch=none", "pruner=sleb patch=rotate")
    assert shared(found) == ["dense", "statistics", "pruned"]
    assert [job.is_run for job in found.jobs] == [False] * 3 + [True] * 2
    assert needs(found, "rotate") == needs(found, "none") == {"dense", "statistics", "pruned"}
    assert needs(found, "pruned") == {"statistics"}
    assert needs(found, "dense-") == needs(found, "statistics-") == set()


def test_what_the_model_generates_comes_first():
    found = plan("corpus=generated pruner=sleb patch=none", "corpus=generated pruner=sleb patch=rotate")
    assert shared(found) == ["texts", "dense", "statistics", "pruned"]
    assert needs(found, "dense-") == needs(found, "statistics-") == {"texts"}
    assert needs(found, "pruned") == {"statistics", "texts"}
    assert needs(found, "rotate") == {"texts", "dense", "statistics", "pruned"}
    assert "texts" not in shared(plan("corpus=generated patch=none", "corpus=generated corpus.seed=1 patch=none"))


def test_what_one_run_needs_is_its_own():
    assert shared(plan("patch=rotate")) == []
    both = plan("pruner=sleb patch=rotate", "pruner=shortgpt patch=rotate")
    assert shared(both) == ["dense", "statistics"]  # each chooses its layers by itself


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("model.seed=1", []),  # another model
        ("seed=1", ["dense"]),  # other calibration tokens
        ("eval.ppl.seq_len=64", ["statistics", "pruned"]),
        ("stages=[pruned,patched]", ["statistics", "pruned"]),
    ],
)
def test_runs_share_what_is_the_same(other, expected):
    assert shared(plan("patch=rotate", f"patch=diag {other}")) == expected


def test_the_longest_search_goes_first_and_serves_the_others():
    found = plan(*(f"pruner=sleb patch={patch} num_pruned_layers={n}" for n in (2, 4, 3) for patch in ("none", "diag")))
    choices = {job.experiment.num_pruned_layers: job for job in found.shared if job.request.part == "pruned"}
    assert choices[4].name in choices[2].needs & choices[3].needs
    assert choices[4].needs == choices[2].needs - {choices[4].name}


def test_choices_from_statistics_wait_for_no_other_choice():
    found = plan(*(f"patch={patch} num_pruned_layers={n}" for n in (2, 4) for patch in ("none", "diag")))
    assert all(needs(found, job.name) == {"statistics"} for job in found.shared if job.request.part == "pruned")


def test_one_run_makes_the_distillation_targets_for_the_others():
    cached = "distill=output_kl distill.targets=cached distillation.num_blocks=4 distillation.block_length=64"
    found = plan(f"patch=rotate {cached}", f"patch=diag {cached}", "patch=lstsq distill=output_kl")
    maker, reader, alone = found.runs
    assert maker.name in reader.needs
    assert maker.name not in alone.needs
    assert not any(job.name in maker.needs for job in found.runs)


def test_the_same_model_with_other_evaluations_has_another_name_and_folder():
    found = plan("eval.ppl.seq_len=64", "eval.ppl.seq_len=128", "eval.ppl.seq_len=64 tracker.wandb.tags=[]")
    first, second, third = found.runs
    assert first.request.folder == third.request.folder != second.request.folder
    assert first.request.path.name == first.request.name == first.name
    assert third.name == f"{first.name} (2)"  # the same again, after it
    assert third.needs == {*first.needs, first.name}


def complete(job):
    """Write the record of a completed run."""
    make_folder(job.request.path)
    record = Record(job.name, None, "", 0, {}, status="completed", answered=job.experiment.required_results)
    write_record(record, job.request.path)


@pytest.mark.slow
def test_what_is_complete_is_not_done_again(tmp_path):
    combinations = ("patch=none", "patch=rotate", "patch=diag")
    before = plan(*combinations, folder=tmp_path)
    complete(before.runs[0])
    complete(before.runs[1])
    after = plan(*combinations, folder=tmp_path)
    assert [run.is_pending for run in after.runs] == [False, False, True]
    assert after.shared == []  # one run alone is left
    assert all(run.is_pending for run in plan(*(f"{c} force=true" for c in combinations), folder=tmp_path).runs)
    more = plan(*(f"{c} eval.ppl.seq_len=64" for c in combinations), folder=tmp_path)
    assert all(run.is_pending for run in more.runs)
    asked_less = plan(*(f"{c} stages=[dense]" for c in combinations[:2]), folder=tmp_path)
    assert not any(run.is_pending for run in asked_less.runs)


def test_a_changed_file_makes_a_run_incomplete(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    combination = f"corpus=text corpus.path={text}"
    complete(plan(combination, folder=tmp_path).runs[0])
    assert not plan(combination, folder=tmp_path).runs[0].is_pending
    text.write_text("two more words")
    assert plan(combination, folder=tmp_path).runs[0].is_pending


def test_an_impossible_combination_is_in_the_plan_with_its_reason():
    error = ConfigError("no such thing")
    found = plan_sweep([PlannedRun(("pruner=slebb",), error=error)], "label")
    assert found.runs[0].error is error
    assert not found.runs[0].is_pending
