"""Retained performance against the published tables, intervals against scipy's bootstrap."""

from dataclasses import replace

import numpy
import pytest
from published import TASKS, name, qa_rows
from scipy import stats

from linearpatch.evaluation.evaluation import Aggregate
from linearpatch.evaluation.retention import (
    FORMULAS,
    Results,
    average,
    compare,
    differences,
    mean_of_ratios,
    ratio_of_means,
    resampled_means,
    retained,
)
from linearpatch.results.metric import DEFINITIONS, Metric


def accuracies(row) -> list[float]:
    return [row["values"][f"qa/{task}"] for task in TASKS]


# Tables 1, 3 and 13 to 16 of the paper: accuracies of nine tasks, their average and what is retained.
DENSE = {row["model"]: row for row in qa_rows() if row["num_pruned_layers"] == "0"}
PRUNED = [row for row in qa_rows() if row["num_pruned_layers"] != "0"]
EQUAL = [1 / 9] * 9


def test_all_published_rows_are_here():
    assert len({tuple(accuracies(row)) for row in PRUNED}) == 53  # one row may stand for two pruners
    assert len(DENSE) == 5 + 1
    assert {row["model"] for row in PRUNED} == set(DENSE)


@pytest.mark.parametrize("row", PRUNED, ids=name)
def test_mean_of_ratios_is_the_papers_retained_performance(row):
    found = 100 * mean_of_ratios(accuracies(DENSE[row["model"]]), accuracies(row), EQUAL)
    assert found == pytest.approx(row["values"]["qa/retained"], abs=0.011)


@pytest.mark.parametrize("row", [*DENSE.values(), *PRUNED], ids=name)
def test_the_average_is_the_papers(row):
    metrics = {f"qa/{task}/acc": metric(row["values"][f"qa/{task}"]) for task in TASKS}
    aggregate = Aggregate("qa/paper", dict.fromkeys(metrics, 1 / 9), "p")
    assert average(Results(metrics), aggregate).value == pytest.approx(row["values"]["qa/average"], abs=0.0051)


def test_ratio_of_means_is_prune_and_comps_retained_performance():
    # Prune&Comp, LLaMA-2-7B: 61.81 of 69.98 is told as 88.32.
    assert 100 * ratio_of_means([69.98], [61.81], [1.0]) == pytest.approx(88.32, abs=0.006)
    row = next(row for row in PRUNED if name(row) == "1-llama2_7b-9-sleb-none-none")
    dense = DENSE["llama2_7b"]
    expected = 100 * row["values"]["qa/average"] / dense["values"]["qa/average"]
    found = 100 * ratio_of_means(accuracies(dense), accuracies(row), EQUAL)
    assert found == pytest.approx(expected, abs=0.02)
    assert found != pytest.approx(row["values"]["qa/retained"], abs=0.3)


def metric(value, n=100, **more):
    return Metric(value, 0.01, n, "p", "h", unit="share", counted="questions", **more)


def answers(seed, share, n=400):
    return (numpy.random.default_rng(seed).random(n) < share).astype(float)


def results(**by_task) -> Results:
    return Results({name: metric(each.mean(), len(each)) for name, each in by_task.items()}, by_task)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    dense, other = answers(0, 0.7), answers(1, 0.6)
    found = differences(results(a=dense), results(a=other), [])["a"]
    expected = stats.bootstrap(
        (other - dense,), numpy.mean, method="percentile", n_resamples=10_000, rng=numpy.random.default_rng(2)
    ).confidence_interval
    assert found["difference"] == pytest.approx((other - dense).mean())
    assert found["low"] == pytest.approx(expected.low, abs=0.005)
    assert found["high"] == pytest.approx(expected.high, abs=0.005)


def test_draws_of_answers_that_all_differ_are_those_of_a_bootstrap_too():
    values = numpy.random.default_rng(0).normal(size=(2, 60))
    first, second = resampled_means(*values, numpy.random.default_rng(1), resamples=20_000)
    assert first.mean() == pytest.approx(values[0].mean(), abs=0.01)
    assert first.std() == pytest.approx(values[0].std() / 60**0.5, rel=0.03)
    correlation = numpy.corrcoef(first, second)[0, 1]
    assert correlation == pytest.approx(numpy.corrcoef(*values)[0, 1], abs=0.03)  # the draws are paired


def test_equal_answers_have_no_spread_and_unpaired_questions_no_difference():
    same = answers(0, 0.5)
    assert differences(results(a=same), results(a=same), [])["a"] == {"difference": 0}
    assert differences(results(a=same), results(a=same[:50]), []) == {}
    one = numpy.array([1.0])
    assert differences(results(a=one), results(a=one), [])["a"] == {"difference": 0}


def test_an_averages_interval_draws_within_tasks_and_a_pooled_one_from_all_questions():
    dense, other = (
        results(a=answers(0, 0.9), b=answers(1, 0.5, 100)),
        results(a=answers(2, 0.6), b=answers(3, 0.5, 100)),
    )
    weights = {"a": 0.5, "b": 0.5}
    found = differences(dense, other, [Aggregate("mean", weights, "p")])["mean"]
    parts = [other.answers[name] - dense.answers[name] for name in "ab"]
    spread = (sum(part.var() / len(part) for part in parts) / 4) ** 0.5
    assert found["difference"] == pytest.approx(sum(part.mean() for part in parts) / 2)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.05)

    alike = [results(**{name: answers(seed + i, share) for i, name in enumerate("abcd")}) for seed, share in
             ((10, 0.8), (20, 0.6))]  # fmt: skip
    found = differences(*alike, [Aggregate("mean", dict.fromkeys("abcd", 0.25), "p")])["mean"]
    spread = sum((alike[1].answers[n] - alike[0].answers[n]).var() / 400 / 16 for n in "abcd") ** 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.05)  # tasks are drawn independently

    weights = {"a": 0.8, "b": 0.2}
    aggregate = Aggregate("all", weights, "p", pooled=True)
    found = differences(dense, other, [aggregate])["all"]
    heap = numpy.concatenate(parts)
    assert found["difference"] == pytest.approx(heap.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * heap.std() / 500**0.5, rel=0.05)
    everything = numpy.concatenate([other.answers["a"], other.answers["b"]])
    assert average(other, aggregate).stderr == pytest.approx(stats.sem(everything))


def test_retained_performance_is_told_in_both_definitions_with_intervals():
    dense, other = results(a=answers(0, 0.9), b=answers(1, 0.5)), results(a=answers(2, 0.6), b=answers(3, 0.4))
    asked = Aggregate("mean", {"a": 0.5, "b": 0.5}, "p", retained=True)
    found = retained(dense, other, [asked, Aggregate("silent", {"a": 1.0}, "p")])
    means = [[stage.metrics[name].value for name in "ab"] for stage in (dense, other)]
    assert set(found) == {"mean_of_ratios", "ratio_of_means"}
    assert set(found["mean_of_ratios"]) == {"mean"}
    assert found["mean_of_ratios"]["mean"].value == pytest.approx(mean_of_ratios(*means, [0.5, 0.5]))
    assert found["ratio_of_means"]["mean"].value == pytest.approx(ratio_of_means(*means, [0.5, 0.5]))
    for kept in found.values():
        assert kept["mean"].low < kept["mean"].value < kept["mean"].high


def test_every_definition_has_a_formula():
    assert list(FORMULAS) == list(DEFINITIONS)


def with_chance(results, chance):
    results.metrics.update({name: replace(metric, chance=chance) for name, metric in results.metrics.items()})
    return results


def test_a_model_that_guesses_retains_nothing_above_chance():
    dense, guessing = results(a=answers(0, 0.9), b=answers(1, 0.7)), results(a=answers(2, 0.25), b=answers(3, 0.25))
    asked = [Aggregate("mean", {"a": 0.5, "b": 0.5}, "p", retained=True)]
    found = retained(with_chance(dense, 0.25), guessing, asked)
    (above,) = found["above_chance"].values()
    expected = [(other.mean() - 0.25) / (own.mean() - 0.25) for own, other in
                ((dense.answers[name], guessing.answers[name]) for name in "ab")]  # fmt: skip
    assert above.value == pytest.approx(sum(expected) / 2)
    assert abs(above.value) < 0.15 < found["mean_of_ratios"]["mean"].value
    assert above.low < above.value < above.high


@pytest.mark.parametrize("chance", [None, 0.95])
def test_nothing_is_said_above_chance_where_that_is_undefined(chance):
    dense, other = with_chance(results(a=answers(0, 0.9)), chance), results(a=answers(2, 0.6))
    assert "above_chance" not in retained(dense, other, [Aggregate("mean", {"a": 1.0}, "p", retained=True)])


def chosen(accuracies, choices):
    """Results of a task at whose questions these answers were chosen."""
    found = results(**{"qa/x/acc": numpy.asarray(accuracies, dtype=float)})
    found.answers["qa/x/choice"] = numpy.asarray(choices, dtype=float)
    return found


def test_flips_count_every_answer_that_changed():
    stages = {
        "dense": chosen([1, 1, 0, 0], [2, 0, 1, 3]),
        "pruned": chosen([1, 0, 1, 0], [2, 1, 2, 3]),
        "patched": chosen([1, 1, 0, 0], [2, 0, 1, 0]),  # one wrong answer became another
    }
    compare(stages, {})
    pruned, patched = (stages[stage].metrics["qa/x/flips"] for stage in ("pruned", "patched"))
    assert (pruned.value, patched.value) == (0.5, 0.25)
    assert patched.stderr == pytest.approx(stats.sem([0, 0, 0, 1]))
    assert patched.versus["pruned"]["difference"] == -0.25
    assert "qa/x/flips" not in stages["dense"].metrics


def test_flips_need_the_same_questions():
    stages = {"dense": chosen([1, 1], [2, 0]), "pruned": chosen([1, 0, 1], [2, 1, 2])}
    compare(stages, {})
    assert "qa/x/flips" not in stages["pruned"].metrics


def test_nothing_is_retained_of_nothing():
    none = results(a=numpy.zeros(10))
    assert retained(none, results(a=answers(0, 0.5, 10)), [Aggregate("mean", {"a": 1.0}, "p", retained=True)]) == {}


class Plain:
    def aggregates(self, name, metrics):
        return [Aggregate(f"{name}/acc", {f"{name}/a/acc": 1.0}, "p", retained=True)]


def test_every_stage_is_compared_with_dense_and_patched_with_pruned():
    stages = {
        stage: results(**{"t/a/acc": answers(seed, share)})
        for seed, (stage, share) in enumerate({"dense": 0.9, "pruned": 0.3, "patched": 0.6}.items())
    }
    kept = compare(stages, {"t": Plain()})
    versus = {stage: found.metrics["t/acc"].versus for stage, found in stages.items()}
    assert {stage: set(bases) for stage, bases in versus.items()} == {
        "dense": set(), "pruned": {"dense"}, "patched": {"dense", "pruned"},
    }  # fmt: skip
    assert versus["pruned"]["dense"]["high"] < 0 < versus["patched"]["pruned"]["low"]
    assert set(kept) == {"pruned", "patched"}
    assert stages["dense"].metrics["t/acc"].parts == ["t/a/acc"]
