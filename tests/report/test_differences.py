"""Paired differences against scipy and slow direct computations, and what can't be compared."""

import itertools
import math
import random
from dataclasses import replace

import numpy
import pandas
import pytest
import torch
from report_runs import answers, metric, record, share, write, write_grid
from safetensors.numpy import save_file
from scipy import stats

from linearpatch.report.differences import compare_all
from linearpatch.report.matrices import differences_frame, matrix_tables
from linearpatch.report.quantities import entries_of
from linearpatch.report.reading import read_runs
from linearpatch.report.rows import merged, with_distinguishing_settings
from linearpatch.report.samples import Samples
from linearpatch.report.statistics import holm, moments, t_tests
from linearpatch.results.questions import Answers


def compared(folder):
    """All entries of a folder, and all differences between them by metric."""
    found = read_runs([folder])
    entries = entries_of(with_distinguishing_settings(merged(row for run in found.runs for row in run.rows)))
    return entries, {one.metric: one for one in compare_all(entries, Samples(found.runs))}


def difference(folder, first, second, name="ppl/wikitext2", size=5):
    entries, found = compared(folder)
    places = [
        next(at for at, e in enumerate(entries) if e.name == called and e.variant.num_removed in (0, size))
        for called in (first, second)
    ]
    return found[name].between(*places)


def test_one_stratum_is_scipys_paired_t_test():
    generator = numpy.random.default_rng(0)
    first, second = generator.normal(size=(2, 23))
    test = stats.ttest_rel(first, second)
    interval = test.confidence_interval(0.95)
    ((low, high, p),) = t_tests([moments([(1.0, first - second)])])
    assert (low, high, p) == pytest.approx((interval.low, interval.high, test.pvalue))


def test_strata_are_scipys_welch_test_where_there_are_two():
    generator = numpy.random.default_rng(1)
    first, second = generator.normal(0.3, 1, size=9), generator.normal(0, 3, size=30)
    found = moments([(1.0, first), (-1.0, second)])
    test = stats.ttest_ind(first, second, equal_var=False)
    assert found.degrees == pytest.approx(test.df)
    assert t_tests([found])[0][2] == pytest.approx(test.pvalue)


def test_intervals_of_averages_are_those_of_a_paired_bootstrap():
    generator = numpy.random.default_rng(2)
    tasks = [generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=size) for size in (150, 400)]
    ((low, high, _),) = t_tests([moments([(0.5, values) for values in tasks])])
    draws = [sum(0.5 * generator.choice(values, size=len(values)).mean() for values in tasks) for _ in range(4000)]
    assert [low, high] == pytest.approx(numpy.quantile(draws, [0.025, 0.975]), abs=0.008)


def test_p_values_are_those_of_an_exhaustive_test_of_signs():
    apart = numpy.array([0.31, -0.22, 0.15, 0.4, -0.12, 0.09, -0.27, 0.2, 0.35, -0.18, 0.05, 0.1])
    signs = numpy.array(list(itertools.product([-1, 1], repeat=len(apart))))
    exact = (numpy.abs(signs @ apart) >= abs(apart.sum()) - 1e-12).mean()
    assert t_tests([moments([(1.0, apart)])])[0][2] == pytest.approx(exact, abs=0.02)
    assert 0.2 < exact < 0.4


def test_holm_is_its_definition():
    """Reject in order while p ≤ level / (number left): the adjusted p is the least level at which each is rejected."""

    def rejected(p, level):
        order = sorted(range(len(p)), key=lambda at: p[at])
        found = set()
        for rank, at in enumerate(order):
            if p[at] > level / (len(p) - rank):
                break
            found.add(at)
        return found

    generator = random.Random(0)
    for _ in range(50):
        p = [generator.random() ** 3 for _ in range(generator.randint(1, 9))]
        adjusted = holm(p)
        for level in (0.01, 0.05, 0.2, 0.7):
            assert rejected(p, level) == {at for at, value in enumerate(adjusted) if value <= level}


def test_without_spread_there_is_no_test_but_of_equal_values():
    equal, shifted, alone = (moments([(1.0, numpy.array(values))]) for values in ([0.0, 0.0], [0.1, 0.1, 0.1], [0.2]))
    assert t_tests([equal, shifted, alone]) == [(0.0, 0.0, 1.0), None, None]


def test_recipes_of_other_pruners_and_sizes_are_paired_over_windows(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt", "sleb"), patches=("none", "rotate"), sizes=(3, 5))
    entries, found = compared(tmp_path)
    by_name = {(e.name, e.variant.num_removed): at for at, e in enumerate(entries)}
    losses = {}
    for run in read_runs([tmp_path]).runs:
        arrays = Answers(run.folder).arrays
        stage = "patched" if run.patch.method == "rotate" else "pruned"
        name = ("ShortGPT" if run.pruning.method == "shortgpt" else "SLEB") + " + rotate" * (stage == "patched")
        losses[name, len(run.pruning.removed_layers)] = arrays[f"{stage}/ppl/wikitext2/windows"].numpy()
    for first, second in itertools.permutations(losses, 2):
        got = found["ppl/wikitext2"].between(by_name[first], by_name[second])
        test = stats.ttest_rel(losses[first], losses[second])
        ends = test.confidence_interval(0.95)
        expected = [100 * math.expm1(x) for x in ((losses[first] - losses[second]).mean(), ends.low, ends.high)]
        assert [got.value, got.low, got.high] == pytest.approx(expected)
        assert got.p == pytest.approx(test.pvalue)
        assert got.basis == "24 windows"


def test_p_values_are_adjusted_within_each_matrix(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt", "sleb"), patches=("none", "rotate"), sizes=(3, 5))
    entries, found = compared(tmp_path)
    sizes = [entry.variant.num_removed for entry in entries]
    pairs = found["ppl/wikitext2"].pairs.values()
    for family in ((3, 3), (3, 5), (0, 5)):
        own = [one for one in pairs if tuple(sorted((sizes[one.first], sizes[one.second]))) == family]
        assert [one.adjusted for one in own] == pytest.approx(holm([one.p for one in own]))


def test_averages_are_paired_over_questions(tmp_path):
    generator = numpy.random.default_rng(3)
    given = {}
    for pruner in ("sleb", "shortgpt"):
        tasks = {"boolq__acc": generator.integers(0, 2, 40), "arc_easy__acc_norm": generator.integers(0, 2, 60)}
        metrics = answers(**{name: float(values.mean()) for name, values in tasks.items()})
        one = record(pruner, "none", pruned=metrics)
        write(tmp_path, one)
        with Answers(tmp_path / one.run_id) as beside:
            for name, values in tasks.items():
                beside.add("pruned", "questions", f"qa/{name.replace('__', '/')}", torch.tensor(values))
        given[pruner] = list(tasks.values())
    got = difference(tmp_path, "SLEB", "ShortGPT", "qa/paper", size=3)
    apart = [mine - theirs for mine, theirs in zip(given["sleb"], given["shortgpt"], strict=True)]
    expected = moments([(0.5, values.astype(float)) for values in apart])
    low, high, p = t_tests([expected])[0]
    assert [got.value, got.low, got.high] == pytest.approx([100 * expected.mean, 100 * low, 100 * high])
    assert (got.p, got.basis) == (pytest.approx(p), "100 questions")


def test_three_seeds_are_paired_by_seed(tmp_path):
    values = {"rotate": (15.0, 16.0, 17.5), "lstsq": (12.0, 12.5, 14.5)}
    write(tmp_path, *(record(patch=patch, seed=seed, patched=ppl)
                      for patch, own in values.items() for seed, ppl in enumerate(own)))  # fmt: skip
    got = difference(tmp_path, "SLEB + least squares", "SLEB + rotate", size=3)
    test = stats.ttest_rel(numpy.log(values["lstsq"]), numpy.log(values["rotate"]))
    assert got.p == pytest.approx(test.pvalue)
    assert got.low == pytest.approx(100 * math.expm1(test.confidence_interval(0.95).low))
    assert got.basis == "3 seeds"


def test_what_cant_be_compared_says_why(tmp_path):
    other_text = {"patched": {"ppl/wikitext2": metric(15.0, token_hash="abcdef")}}
    other_protocol = {"patched": {"ppl/wikitext2": metric(15.0, protocol="windows of 4 tokens")}}
    write(tmp_path, record("sleb"), record("taylor", **other_text), record("tail", **other_protocol))
    text = difference(tmp_path, "SLEB + rotate", "Taylor + rotate", size=3)
    protocol = difference(tmp_path, "SLEB + rotate", "Tail + rotate", size=3)
    assert (text.value, protocol.value) == (None, None)
    assert text.reason == "other text or questions: 10 tokens (01234567) and 10 tokens (abcdef)"
    assert protocol.reason == "other protocol: windows of 8 tokens and windows of 4 tokens"
    missing = difference(tmp_path, "SLEB", "SLEB + rotate", size=3)
    assert (missing.value, missing.low) == (pytest.approx(100 / 3), None)
    assert missing.reason.startswith("no interval: no answers to each question (questions.parquet), or no losses")


def test_what_was_measured_in_another_way_is_not_ranked_among_the_others(tmp_path):
    def other(value):
        return {"patched": {"ppl/wikitext2": metric(value, protocol="windows of 4 tokens")}}

    write(tmp_path, record("sleb"), record("taylor"), record("tail"))
    write(tmp_path, record("shortgpt", **other(1.0)), record("streamline", **other(2.0)))
    entries, found = compared(tmp_path)
    (table,) = matrix_tables(entries, list(found.values()))
    names = [one.labels[0] for one in table.lines]
    assert ["ShortGPT + rotate" in names[-2], "Streamline + rotate" in names[-1]] == [True, True]
    assert "the best recipe of those measured alike first" in table.notes[0]


def test_windows_that_dont_give_the_recorded_perplexity_are_not_used(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt", "sleb"), patches=("none",), sizes=(5,))
    run = next(run for run in read_runs([tmp_path]).runs if run.pruning.method == "sleb")
    broken = replace(run.record.metrics["pruned"]["ppl/wikitext2"], value=99.0)
    run.record.metrics["pruned"]["ppl/wikitext2"] = broken
    (run.folder / "result.json").write_text(run.record.to_json())
    got = difference(tmp_path, "SLEB", "ShortGPT")
    assert got.reason == "no interval: the losses of the windows don't give the recorded perplexity"


def test_a_matrix_is_antisymmetric_and_says_what_it_did(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt", "sleb"), patches=("none", "rotate"), sizes=(5,))
    entries, found = compared(tmp_path)
    (table,) = matrix_tables(entries, list(found.values()))
    assert table.columns == ("1.", "2.", "3.", "4.")
    assert [one.labels[0][:2] for one in table.lines] == ["1.", "2.", "3.", "4."]
    values = numpy.array([[cell.value or 0.0 for cell in one.cells] for one in table.lines])
    assert (1 + values / 100) * (1 + values.T / 100) == pytest.approx(numpy.ones((4, 4)))
    assert values[0].max() <= 0  # the best recipe first
    assert any("Holm's method over all 6 comparisons" in note for note in table.notes)
    assert "paired over 24 windows" in table.notes
    frame = differences_frame(entries, list(found.values()))
    assert len(frame) == 10  # five entries with dense
    assert isinstance(frame, pandas.DataFrame)
    assert set(frame.columns) >= {"recipe", "against", "difference", "low", "high", "p", "p_holm", "reason"}


def test_the_same_model_twice_is_identical(tmp_path):
    write_grid(tmp_path, pruners=("shortgpt",), patches=("none",), sizes=(5,))
    run = read_runs([tmp_path]).runs[0]
    twin = replace(run.record, run_id="twin", pruning=replace(run.record.pruning, method="sleb"))
    write(tmp_path, twin)
    source = run.folder / "diagnostics.safetensors"
    (tmp_path / "twin" / source.name).write_bytes(source.read_bytes())
    got = difference(tmp_path, "SLEB", "ShortGPT")
    assert (got.value, got.low, got.high, got.p) == (0, 0, 0, 1)


def test_a_share_that_was_measured_once_is_compared_without_an_interval(tmp_path):
    one, two = ({"pruned": {"smoke/acc": share(v, "p", headline=True)}} for v in (0.5, 0.6))
    write(tmp_path, record("sleb", "none", **one), record("tail", "none", **two))
    got = difference(tmp_path, "Tail", "SLEB", "smoke/acc", size=3)
    assert (got.value, got.low) == (pytest.approx(10), None)


def test_divergences_are_compared_in_nats_over_windows(tmp_path):
    generator = numpy.random.default_rng(4)
    name = "divergence/wikitext2/kl"
    divergences = {patch: 0.3 + generator.random(16) + shift for patch, shift in {"rotate": 0.2, "lstsq": 0.0}.items()}
    for patch, values in divergences.items():
        one = record(patch=patch, dense={name: metric(0.0)}, patched={name: metric(float(values.mean()))})
        write(tmp_path, one)
        save_file(
            {f"dense/{name}/windows": numpy.zeros(16), f"patched/{name}/windows": values},
            tmp_path / one.run_id / "diagnostics.safetensors",
        )
    entries, found = compared(tmp_path)
    places = {entry.name: at for at, entry in enumerate(entries)}
    rotate, lstsq = (
        next(at for called, at in places.items() if patch in called) for patch in ("rotate", "least squares")
    )
    pair, reverse = found[name].between(rotate, lstsq), found[name].between(lstsq, rotate)
    test = stats.ttest_rel(divergences["rotate"], divergences["lstsq"])
    assert (pair.value, pair.p) == pytest.approx((test._estimate, test.pvalue))
    assert (pair.low, pair.high) == pytest.approx((-reverse.high, -reverse.low))
    assert pair.basis == "16 windows"
    (table,) = [
        table
        for table in matrix_tables(entries, list(found.values()))
        if "KL divergence from dense on WikiText-2" in table.title
    ]
    assert "least squares" in table.lines[0].labels[0]  # the lower divergence first
    assert any("in nats" in note for note in table.notes)
    assert set(differences_frame(entries, [found[name]])["unit"]) == {"nats"}
