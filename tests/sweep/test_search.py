"""Searches by Optuna on our own runner: spaces, objectives, drafts, and resuming without counting from zero."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from linearpatch.cli import main
from linearpatch.errors import ConfigError
from linearpatch.results.metric import Metric
from linearpatch.results.record import Record
from linearpatch.sweep.objectives import Objective
from linearpatch.sweep.search import FILE, Search, SearchSettings, counts_of
from linearpatch.sweep.space import Space

optuna = pytest.importorskip("optuna")

TINY = ("debug=tiny", "model=random", "tracker=none", "hydra/sweeper=optuna")


def space(*words):
    return Space.of(OverridesParser.create().parse_overrides(list(words)))


def record(value, status="completed"):
    found = Record("r", None, "", 0, {}, status=status, error="it broke" if status == "failed" else None)
    found.metrics = {"dense": {}, "pruned": {"ppl/x": Metric(value, None, 1, "p", "")}}
    return found


def test_a_space_is_what_overrides_say():
    found = space("seed=1", "pruner=sleb,tail", "n=range(1,8,2)", "x=interval(0.5,2)",
                  "ridge=tag(log, interval(1e-5, 0.1))", "k=int(interval(1,5))", "seed=2")  # fmt: skip
    assert found.fixed == ("seed=2",)
    categorical, floating, whole = (
        getattr(optuna.distributions, f"{kind}Distribution") for kind in ("Categorical", "Float", "Int")
    )
    assert found.varied == {
        "pruner": categorical(["sleb", "tail"]), "n": whole(1, 7, step=2), "x": floating(0.5, 2),
        "ridge": floating(1e-5, 0.1, log=True), "k": whole(1, 5),
    }  # fmt: skip
    assert found.overrides({"pruner": "tail", "ridge": 1e-3}) == ["seed=2", "pruner=tail", "ridge=0.001"]
    with pytest.raises(ConfigError, match="nothing to search"):
        space("pruner=sleb")


def test_objectives_by_name():
    done = record(3.0)
    assert Objective.parse("minimize ppl").value(done) == 3.0
    assert Objective.parse("maximize ppl/x").value(done) == 3.0
    with pytest.raises(ConfigError, match=r"Did you mean 'ppl/x'\?"):
        Objective.parse("minimize ppl/y").value(done)
    with pytest.raises(ConfigError, match="isn't finite"):
        Objective.parse("minimize ppl").value(record(None))
    for text in ("ppl", "lower ppl", "minimize"):
        with pytest.raises(ConfigError, match="Allowed: minimize or maximize"):
            Objective.parse(text)


class Runner:
    """Runs trials by a formula; keeps what it was asked for."""

    def __init__(self, value=lambda settings: float(settings["x"]), stops_after=None):
        self.value, self.stops_after, self.asked, self.trials_left = value, stops_after, [], []

    def __call__(self, combinations, trials_left):
        self.trials_left.append(trials_left)
        found = []
        for words in combinations:
            settings = dict(word.split("=") for word in words)
            if tuple(words) not in self.asked:
                self.asked.append(tuple(words))
                if self.stops_after is not None and len(self.asked) > self.stops_after:
                    raise KeyboardInterrupt
            value = self.value(settings)
            found.append(record(value) if value is not None else record(1.0, "failed"))
        return found


def search(folder="S", words=("x=interval(0.0,1.0)",), **settings):
    return Search(SearchSettings(**settings), space(*words), Path(folder), "test")


def test_a_search_that_is_stopped_resumes_with_its_trials():
    runner = Runner(stops_after=5)
    with pytest.raises(KeyboardInterrupt):
        search(n_trials=8).run(runner, 2)
    first = search(n_trials=8)
    assert counts_of(first.study.trials) == {"complete": 4, "running": 2}
    interrupted = [trial.params["x"] for trial in first.study.trials[4:]]
    again = Runner()
    first.run(again, 2)
    assert (runner.trials_left, again.trials_left) == ([6, 4, 2], [2, 0])
    assert counts_of(first.study.trials) == {"complete": 8}
    assert [trial.number for trial in first.study.trials] == list(range(8))
    assert [trial.params["x"] for trial in first.study.trials[4:6]] == interrupted
    assert len({trial.params["x"] for trial in first.study.trials}) == 8  # the sampler doesn't begin again
    assert first.is_complete
    more = search(n_trials=10)
    more.run(Runner(), 4)
    assert counts_of(more.study.trials) == {"complete": 10}
    best, values = more.best()[0]
    assert values == [min(trial.params["x"] for trial in more.study.trials)] == [best.params["x"]]


def test_a_failed_trial_counts_and_says_why():
    found = search(n_trials=4)
    found.run(Runner(lambda settings: None if float(settings["x"]) > 0.4 else 1.0), 2)
    counts = counts_of(found.study.trials)
    assert counts["fail"] >= 1
    assert sum(counts.values()) == 4
    assert not found.is_complete
    assert "it broke" in {trial.user_attrs.get("error") for trial in found.study.trials}


def test_fail_fast_stops_after_the_batch():
    found = search(n_trials=9)
    found.run(Runner(lambda settings: None), 3, fail_fast=True)
    assert counts_of(found.study.trials) == {"fail": 3}


def test_several_objectives_give_a_front():
    found = search(n_trials=12, objectives=["minimize ppl", "maximize ppl"])
    found.run(Runner(), 3)
    assert len(found.best()) == 12  # one the opposite of the other: none beats another
    with pytest.raises(ConfigError, match="Leave draft empty"):
        SearchSettings(objectives=["minimize ppl", "maximize ppl"], draft=["seed=1"])


def test_drafts_spare_trials_that_are_worse_than_the_median():
    runner = Runner()
    found = search(n_trials=16, draft=["seed=1"], sampler="random")
    found.run(runner, 1)
    counts = counts_of(found.study.trials)
    drafts = [words for words in runner.asked if "seed=1" in words]
    assert len(drafts) == 16
    assert all(f"output_dir={Path('S/.drafts')}" in words for words in drafts)
    assert counts["complete"] + counts["pruned"] == 16
    assert counts["pruned"] == 16 - (len(runner.asked) - len(drafts)) > 0
    assert runner.trials_left[-1] == 0  # also where the last trial was pruned
    for trial in found.study.trials:  # the median of the trials before it that were run
        before = [one.params["x"] for one in found.study.trials[: trial.number] if one.state.name == "COMPLETE"]
        is_worse = len(before) >= 5 and trial.params["x"] > sorted_median(before)
        assert (trial.state.name == "PRUNED") == is_worse


def sorted_median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def test_a_study_of_another_search_is_left_alone():
    search(n_trials=1).run(Runner(), 1)
    with pytest.raises(ConfigError, match="study of another search: its space"):
        search(words=("x=interval(0.0,2.0)",))
    Path("other").mkdir()
    Path("other", FILE).write_text("no database")
    with pytest.raises(Exception, match="Move it away"):
        search("other")


def test_settings_are_checked():
    for settings in ({"n_trials": 0}, {"sampler": "best"}, {"objectives": []}, {"at_a_time": 0}):
        with pytest.raises(ConfigError):
            SearchSettings(**settings)
    assert main(["run", "-m", *TINY, "sweep=none.yaml", "pruner=tail,random"]) == 1


def test_optuna_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'linearpatch\[optuna\]'"):
        SearchSettings() and Search(SearchSettings(), SimpleNamespace(describe=dict), Path("S"), "test")


WORDS = ("pruner=tail,streamline", "num_pruned_layers=range(2,6)", "patch=none", "output_dir=S", "group=mine",
         "hydra.sweeper.objectives=[minimize ppl/pydoc, minimize parameters]")  # fmt: skip


@pytest.mark.slow
def test_a_killed_search_resumes_from_the_command_line(tmp_path, capsys):
    """It ends with the same number of trials, each with a run of its own that status and report know."""
    command = [sys.executable, "-m", "linearpatch.cli", "run", "-m", *TINY, *WORDS, "hydra.sweeper.n_trials=6"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:  # until the third has begun, or a later one
        os.killpg(process.pid, signal.SIGSTOP)  # so that what is seen running still runs when it is killed
        records = [path.read_text() for path in Path("S").glob("*/result.json")]
        if len(records) >= 3 and any('"status": "running"' in text for text in records):
            break
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{Path('S', FILE).resolve()}")
    before = counts_of(study.trials)
    assert before.get("running")
    assert main(["status", "S"]) == 1
    assert "resume with: linearpatch run -m" in " ".join(capsys.readouterr().out.split())
    assert main(["run", "-m", *TINY, *WORDS, "hydra.sweeper.n_trials=6"]) == 0
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{Path('S', FILE).resolve()}")
    assert counts_of(study.trials) == {"complete": 6}
    runs = {json.loads(path.read_text())["run_id"] for path in Path("S").glob("*/result.json")}
    assert {trial.user_attrs["run_id"] for trial in study.trials} == runs
    told = capsys.readouterr().out
    assert "Pareto front" in told
    assert main(["status", "S"]) == 0
    assert main(["report", "S"]) == 0
