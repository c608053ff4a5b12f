"""What can be seen of a sweep from outside."""

import json
import time
from dataclasses import asdict

import pytest
from rich.console import Console

from linearpatch.cli import main
from linearpatch.errors import StorageError
from linearpatch.leases import exclusive
from linearpatch.progress import steps
from linearpatch.results.record import Record, write_record
from linearpatch.results.state import LEASE_NAME, Progress, RunState, occupied, state_of
from linearpatch.storage import make_folder
from linearpatch.sweep.manifest import FOLDER, Listed, Manifest
from linearpatch.sweep.tables import duration
from linearpatch.sweep.watching import Watched, status_table, time_left, watch


def record(folder, status="completed", seconds=10.0, **more):
    make_folder(folder)
    write_record(Record(folder.name, "g", "", 0, {}, status=status, timings_s={"rank": seconds}, **more), folder)


def test_each_state_of_a_folder(tmp_path):
    assert state_of(tmp_path / "nothing").state == "waiting"
    for status in ("completed", "failed", "interrupted"):
        record(tmp_path / status, status)
        assert state_of(tmp_path / status).state == status
    record(tmp_path / "run", "running")
    assert state_of(tmp_path / "run").state == "lost"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    assert state_of(tmp_path / "broken").state == "failed"


def test_a_run_tells_how_far_it_is(tmp_path):
    with occupied(tmp_path / "run"), steps("questions", 40) as on_step:
        record(tmp_path / "run", "running")
        on_step(10)  # within a second of the bar's beginning nothing is written
        assert state_of(tmp_path / "run").progress.done == 0
        time.sleep(1.1)
        on_step(10)
        now = state_of(tmp_path / "run")
        assert (now.state, now.progress.what, now.progress.done, now.progress.total) == ("running", "questions", 20, 40)
    assert not (tmp_path / "run" / "progress.json").exists()
    assert not (tmp_path / "run" / LEASE_NAME).exists()


def test_a_folder_that_is_in_use_is_refused(tmp_path):
    with exclusive(tmp_path / LEASE_NAME, "it"), pytest.raises(StorageError, match="in the works"), occupied(tmp_path):
        pass


def test_a_run_that_two_sweeps_list_is_one_run(tmp_path):
    for label, names in {"first": ["kept", "given_up"], "second": ["kept", "added"]}.items():
        jobs = tuple(Listed(name, "run", name) for name in names)
        make_folder(tmp_path / FOLDER)
        (tmp_path / FOLDER / f"{label}.json").write_text(json.dumps(asdict(Manifest(label, time.time(), jobs))))
    record(tmp_path / "kept")
    record(tmp_path / "alone")
    found = {job.name: job.now.state for job in watch(tmp_path)}
    assert found == {"kept": "completed", "given_up": "waiting", "added": "waiting", "alone": "completed"}
    assert len(watch(tmp_path)) == len(found)


def watched(state, seconds=None, began=None, part="run"):
    progress = Progress("rank", 3, 10, time.time() - began, time.time(), 1, "here") if began is not None else None
    done = Record("r", None, "", 0, {}, timings_s={"rank": seconds}) if seconds else None
    return Watched("r", part, RunState(state, done, progress))


def test_the_time_left_follows_from_what_runs_took():
    assert time_left([watched("waiting"), watched("waiting")]) is None
    assert time_left([watched("completed", 10.0)]) is None
    jobs = [watched("completed", 10.0), watched("completed", 20.0), watched("completed", 30.0), watched("waiting")]
    assert time_left(jobs) == pytest.approx(20)
    assert time_left([*jobs, watched("running", began=5.0)]) == pytest.approx(20 + 15, abs=0.5)
    two = [watched("running", began=5.0), watched("running", began=5.0)]
    assert time_left([*jobs, *two]) == pytest.approx((20 + 15 + 15) / 2, abs=0.5)


def test_the_table_says_what_runs_are_at(tmp_path):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(
        status_table(tmp_path, [watched("completed", 75.0), watched("running", began=5.0), watched("waiting")])
    )
    text = " ".join(console.export_text().split())  # the title is folded where the folder's name is long
    assert "1 waiting, 1 running, 1 completed" in text
    assert "3/10" in text
    assert "1 min 15 s" in text
    assert "left" in text


def test_a_folder_of_runs_without_a_sweep_can_be_watched(tmp_path, capsys):
    record(tmp_path / "one")
    record(tmp_path / "two", "failed", error="no such thing")
    assert {job.name: job.now.state for job in watch(tmp_path)} == {"one": "completed", "two": "failed"}
    assert main(["status", str(tmp_path)]) == 1
    assert "no such thing" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "one")]) == 0
    assert main(["status", str(tmp_path / "nowhere")]) == 1
    assert "holds neither runs nor a sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
