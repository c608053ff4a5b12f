"""From records to what is compared: each model once, seeds together, settings that tell models apart."""

import json
from dataclasses import replace

import pytest
from report_runs import entries, line, metric, record, write

from linearpatch.errors import StorageError
from linearpatch.report.layouts import ablation_table, layers_table, paper_tables
from linearpatch.report.quantities import metric as quantity
from linearpatch.report.reading import read_runs


def variants(found):
    return [(e.variant.stage, e.variant.pruner, e.variant.patch, e.variant.distill, len(e.rows)) for e in found]


def test_dense_and_pruned_stand_once_for_all_runs():
    found = entries(record(patch="rotate"), record(patch="lstsq"), record(patch="none", dense=10.0, pruned=20.0))
    assert variants(found) == [
        ("dense", "", "", "", 1), ("pruned", "sleb", "none", "none", 1), ("patched", "sleb", "rotate", "none", 1),
        ("patched", "sleb", "lstsq", "none", 1),
    ]  # fmt: skip
    assert len(found[0].rows[0].runs) == 3


def test_a_distilled_model_is_a_line_of_its_own():
    found = entries(record(dense=10.0, pruned=20.0, patched=15.0, distilled=12.0))
    assert variants(found)[-1] == ("distilled", "sleb", "rotate", "output_kl", 1)
    assert found[-1].rows[0].num_parameters == 10_000_000 - 2_000_000 + 500_000


def test_runs_that_differ_in_the_seed_are_one_entry():
    runs = [record(seed=seed, dense=10.0, pruned=20.0, patched=value) for seed, value in enumerate((14, 15, 19))]
    found = entries(*runs)
    assert variants(found)[-1] == ("patched", "sleb", "rotate", "none", 3)
    value = found[-1].value(quantity("ppl/wikitext2"))
    assert value.mean == 16
    assert value.spread == pytest.approx(7**0.5)  # ((-2)² + (-1)² + 3²) / 2
    assert value.interval == (pytest.approx(16 - 7**0.5), pytest.approx(16 + 7**0.5))
    assert found[0].value(quantity("ppl/wikitext2")).spread is None


def test_what_was_measured_differently_is_not_mixed():
    other = {stage: {"ppl/wikitext2": metric(9.0, protocol="windows of 4 tokens")} for stage in ("dense", "patched")}
    found = entries(record(seed=0), record(seed=1, **other))
    assert [(e.variant.stage, len(e.rows)) for e in found] == [
        ("dense", 1), ("dense", 1), ("pruned", 1), ("patched", 1), ("patched", 1),
    ]  # fmt: skip


def test_evaluations_of_several_runs_come_together():
    first = record(dense={"ppl/wikitext2": metric(10.0)}, pruned={"ppl/wikitext2": metric(20.0)})
    second = record(patch="lstsq", dense={"ppl/c4": metric(11.0)}, pruned={"ppl/c4": metric(21.0)})
    dense, pruned = entries(first, second)
    assert set(dense.rows[0].metrics) == set(pruned.rows[0].metrics) == {"ppl/wikitext2", "ppl/c4"}


def test_settings_that_vary_become_columns():
    found = entries(
        record(config={"patch": {"ridge": 0.1}, "output_dir": "a"}, patched=15.0),
        record(config={"patch": {"ridge": 0.001}, "output_dir": "b"}, patched=12.0),
    )
    assert [e.variant.settings_text for e in found] == ["ridge=0.001", "ridge=0.1"]
    table = ablation_table(found)
    assert "patch.ridge" in table.heads
    assert line(table, "0.001") == ["12.00 ± 0.50"]
    assert ablation_table(entries(record(), record(patch="lstsq"))) is None


def test_layers_that_were_chosen_for_a_patch_say_for_which():
    def chosen_for(patch, config, **stages):
        one = record("patch_aware", patch, config=config, **stages)
        return replace(one, run_id=f"{one.run_id}-{config}", pruning=replace(one.pruning, sees_patches=True))

    none = chosen_for("none", {"patch": {}}, dense=10.0, pruned=20.0)
    plain = chosen_for("lstsq", {"patch": {"ridge": 0.1, "weighting": "none"}})
    relative = chosen_for("lstsq", {"patch": {"ridge": 0.1, "weighting": "relative"}})
    found = [entry.variant for entry in entries(none, plain, relative) if entry.variant.stage != "dense"]
    assert [(variant.patch, variant.settings_text) for variant in found] == [
        ("none", "chosen_for=lstsq, weighting=none"),
        ("none", "chosen_for=lstsq, weighting=relative"),
        ("none", "chosen_for=none"),
        ("lstsq", "weighting=none"),
        ("lstsq", "weighting=relative"),
    ]


def test_a_corpus_is_told_by_its_name_alone():
    configs = [{"corpus": {"name": name, "path": f"x/{name}"}} for name in ("c4", "pile")]
    found = entries(*(record(config=config, patched=15.0) for config in configs))
    assert [e.variant.settings_text for e in found] == ["corpus=c4", "corpus=pile"]


def test_what_patches_were_fitted_on_is_named_also_where_it_is_the_runs_own_corpus():
    def fitted(calibration, corpus="wikitext2"):
        config = {"corpus": {"name": corpus, "path": f"x/{corpus}"}, "calibration": {"corpus": calibration}}
        return record(config=config, patched=15.0 + len(str(config)))

    mixed = {"name": "mixture", "parts": {"docs": {"name": "pydoc"}}}
    assert [e.variant.settings_text for e in entries(fitted(None), fitted(mixed))] == [
        "corpus=mixture",
        "corpus=wikitext2",
    ]
    assert [e.variant.settings_text for e in entries(fitted(None), fitted(None, "c4"))] == [
        "corpus=c4",
        "corpus=wikitext2",
    ]


def test_settings_that_vary_over_sizes_enter_the_name_at_all_sizes():
    def fitted(size, ridge):
        return record(removed=range(3, 3 + size), config={"patch": {"ridge": ridge}}, patched=15.0)

    found = entries(fitted(2, 0.1), fitted(4, 0.1), fitted(4, 0.2))
    assert [e.name for e in found] == ["SLEB + rotate (ridge=0.1)", "SLEB + rotate (ridge=0.1)",
                                       "SLEB + rotate (ridge=0.2)"]  # fmt: skip


def test_other_calibration_texts_enter_the_names_also_of_different_pruners():
    configs = {"sleb": {"corpus": {"name": "c4"}}, "shortgpt": {"corpus": {"name": "pile"}}}
    found = entries(*(record(pruner, config=config, patched=15.0) for pruner, config in configs.items()))
    assert [e.name for e in found] == ["ShortGPT + rotate (corpus=pile)", "SLEB + rotate (corpus=c4)"]


def test_recipes_are_called_by_the_titles_of_their_components():
    distilled = record("shortgpt", "lstsq", distilled=12.0)
    plain, strange = record("mine", "theirs", patched=15.0), record("tail", "none", pruned=20.0)
    assert [e.name for e in entries(distilled, plain, strange)] == [
        "mine + theirs", "ShortGPT + least squares + top-K KL", "Tail",
    ]  # fmt: skip


def test_runs_alike_in_all_that_is_recorded_are_told_apart_by_their_layers_or_ids():
    one, other = record(patched=15.0), record(removed=(1, 2, 3), patched=16.0)
    assert {e.name for e in entries(one, replace(other, run_id="other"))} == {
        "SLEB + rotate [layers 3-4, 9]", "SLEB + rotate [layers 1-3]",
    }  # fmt: skip


def test_removed_layers_are_ranges_and_seeds_that_differ_are_named():
    table = layers_table(entries(record(seed=0), record(seed=1), record(seed=2, removed=(5, 6, 7))))
    assert line(table, "SLEB, seed 0, SLEB, seed 1") == ["3-4, 9"]
    assert line(table, "SLEB, seed 2") == ["5-7"]
    assert line(layers_table(entries(record(), record("shortgpt"))), "ShortGPT, SLEB") == ["3-4, 9"]


def test_records_are_found_at_any_depth_but_not_in_hidden_folders(tmp_path):
    write(tmp_path / "a" / "b", record())
    write(tmp_path / ".shared", record(patch="lstsq"))
    found = read_runs([tmp_path, tmp_path / "a"])
    assert [run.patch.method for run in found.runs] == ["rotate"]


def test_runs_that_failed_or_cant_be_read_are_told_with_the_reason(tmp_path):
    failed, running, odd, endless = (record(patch=name) for name in ("lstsq", "diag", "scalar", "none"))
    failed.status, failed.error = "failed", "no such corpus"
    running.status = "running"
    odd.metrics = {"dense": {"ppl/w": {"value": "ten"}}}
    write(tmp_path, record(), failed, running, odd)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    text = endless.to_json().replace("20.0", "NaN")
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "result.json").write_text(text)
    found = read_runs([tmp_path])
    assert len(found.runs) == 1
    reasons = {(failure.status, failure.reason[:25]) for failure in found.failures}
    assert ("failed", "no such corpus") in reasons
    assert ("running", "it is running, or was kil") in reasons
    assert sorted(failure.status for failure in found.failures)[2:] == ["unreadable"] * 3


def test_of_a_run_in_two_folders_the_newer_counts(tmp_path):
    old, new = record(patched=15.0), record(patched=14.0)
    write(tmp_path / "old", old)
    write(tmp_path / "new", new)
    import os

    os.utime(tmp_path / "old" / old.run_id / "result.json", (1, 1))
    found = read_runs([tmp_path])
    assert len(found.runs) == 1
    assert found.runs[0].record.metrics["patched"]["ppl/wikitext2"].value == 14.0
    assert "is in two folders" in found.remarks[0]


@pytest.mark.parametrize("made", [True, False])
def test_no_records_are_an_error_that_says_what_to_do(tmp_path, made):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(StorageError, match=r"no result\.json" if made else "not a folder"):
        read_runs([folder])


def test_a_run_without_any_metric_is_no_line(tmp_path):
    empty = record()
    empty.metrics = {}
    found = read_runs([write(tmp_path, empty)])
    assert found.runs[0].rows == ()
    assert paper_tables([]) == []
    assert json.loads(empty.to_json())["metrics"] == {}
