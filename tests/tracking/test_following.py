"""A tracker that fails costs nothing: no result, no other tracker."""

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass

import pandas
import pytest

from linearpatch import pipeline
from linearpatch.cli import main
from linearpatch.config import compose_experiment
from linearpatch.errors import ConfigError
from linearpatch.results.record import Record
from linearpatch.tracking import tracker as tracker_module
from linearpatch.tracking.following import following
from linearpatch.tracking.tracker import Tracker


@dataclass(frozen=True)
class Broken(Tracker):
    """Fails at one point of a run's life."""

    at: str = ""

    @contextmanager
    def follow(self, record, folder):
        self._fail("start")
        try:
            yield lambda point: self._fail("point")
        finally:
            assert json.loads((folder / "result.json").read_text())["status"] == record.status  # it is on disk
            self._fail("end")

    def _fail(self, here):
        if here == self.at:
            raise OSError(f"the network is gone at the {here}")


@pytest.fixture
def logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("linearpatch"), "propagate", True)
    return caplog


@pytest.mark.parametrize("at", ["start", "point", "end", ""])
def test_a_run_completes_whatever_a_tracker_does(at, tmp_path, monkeypatch, logged):
    """The broken one comes first, and the other gets everything."""
    from linearpatch.tracking.jsonl import JsonlTracker

    experiment = compose_experiment(
        ["debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none", "distill=output_kl"]
    )
    object.__setattr__(experiment, "tracker", {"broken": Broken(at), "jsonl": JsonlTracker()})
    record = pipeline.run(experiment, tmp_path / "D")
    assert record.status == json.loads((tmp_path / "D" / "result.json").read_text())["status"] == "completed"
    table = pandas.read_json(tmp_path / "D" / "metrics.jsonl", lines=True)
    assert set(table["kind"]) == {"curve", "metric"}
    assert ("the network is gone" in logged.text) == bool(at)
    assert logged.text.count("tracker=broken") == bool(at)  # once, not for every point


def test_a_tracker_learns_how_the_run_ended_and_cannot_swallow_it(tmp_path):
    seen = []

    @dataclass(frozen=True)
    class Swallows(Tracker):
        @contextmanager
        def follow(self, record, folder):
            try:
                yield lambda point: None
            except ValueError as error:
                seen.append(str(error))

    record = Record("run", None, "", 0, {})

    def run():
        with following({"s": Swallows()}, record, tmp_path) as start:
            start()
            raise ValueError("impossible")

    with pytest.raises(ValueError, match="impossible"):
        run()
    assert seen == ["impossible"]


def test_an_interrupt_while_a_tracker_ends_comes_through_and_ends_the_others(tmp_path):
    ended = []

    @dataclass(frozen=True)
    class Interrupted(Tracker):
        interrupts: bool = False

        @contextmanager
        def follow(self, record, folder):
            try:
                yield lambda point: None
            finally:
                ended.append(self.interrupts)
                if self.interrupts:
                    raise KeyboardInterrupt

    trackers = {"a": Interrupted(), "b": Interrupted(interrupts=True)}
    with pytest.raises(KeyboardInterrupt), following(trackers, Record("run", None, "", 0, {}), tmp_path) as start:
        start()
    assert sorted(ended) == [False, True]


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("tracker=wandb", ["wandb"]),
        ("tracker=jsonl", ["jsonl"]),
        ("tracker=[wandb,jsonl]", ["wandb", "jsonl"]),
        ("tracker=none", ["none"]),
        ("tracker=[]", []),
    ],
)
def test_a_run_has_any_number_of_trackers(override, names):
    assert list(compose_experiment([override]).trackers) == names


def test_settings_are_those_of_each_tracker():
    experiment = compose_experiment(["tracker=[jsonl,wandb]", "tracker.wandb.project=mine"])
    assert experiment.trackers["wandb"].project == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tracker.mode=online"], r"settings are below the name of their tracker. Write tracker\.wandb\.mode=…"),
        (["tracker.wandb.mode=on"], r"tracker\.wandb\.mode is 'on'. Allowed: offline, online"),
        (["tracker.wandb.mod=online"], "Did you mean 'mode'"),
        (["tracker=jsonl", "tracker.wandb.mode=online"], r"tracker=wandb isn't chosen. Add it: 'tracker=\[…,wandb\]'"),
        (["tracker=[none,jsonl]"], "combines none with jsonl. Leave none out"),
        (["tracker=[jsonl,wadb]"], "Did you mean 'wandb'"),
        (["+tracker.file=x"], r"tracker\.file is 'x', a setting without its tracker's name. Write tracker\.NAME\.file"),
    ],
)
def test_mistakes_have_sentences(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_experiment(overrides)


@pytest.mark.parametrize(
    ("name", "command"), [("wandb", "pip install wandb"), ("mlflow", r"pip install 'linearpatch\[mlflow\]'")]
)
def test_a_missing_package_is_an_error_before_the_run(name, command, monkeypatch):
    monkeypatch.setattr(tracker_module, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"tracker={name} needs the package {name}. Run: {command}"):
        compose_experiment([f"tracker={name}"])


def test_runs_of_an_experiment_have_its_name_as_group():
    assert compose_experiment(["experiment=demo"]).group == "demo"
    assert compose_experiment(["experiment=demo", "group=mine"]).group == "mine"
    assert compose_experiment([]).group is None


@pytest.mark.slow
def test_a_sweep_takes_a_list_of_trackers(tmp_path, session_cache, monkeypatch):
    """In a file of combinations and on the command line."""
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    (tmp_path / "sweep.yaml").write_text("- {patch: none, tracker: [jsonl]}\n- {patch: rotate, tracker: [none]}\n")
    words = ["debug=tiny", "model=random", "num_pruned_layers=3", "pruner=tail", f"output_dir={tmp_path}/S"]
    assert main(["run", "-m", f"sweep={tmp_path}/sweep.yaml", *words]) == 0
    (file,) = (tmp_path / "S").glob("*/metrics.jsonl")
    assert set(pandas.read_json(file, lines=True)["patch"]) == {"none"}
