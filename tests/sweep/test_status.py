"""What can be seen of a sweep from outside."""

import json
import os
import re
import shlex
import threading
import time
from dataclasses import asdict

import pytest
from rich.console import Console

from linearpatch.cli import main
from linearpatch.errors import StorageError
from linearpatch.results.files import write_record
from linearpatch.results.record import Record
from linearpatch.results.state import LEASE_NAME, Progress, RunState, occupied, state_of
from linearpatch.runtime.progress import steps
from linearpatch.storage.files import make_folder
from linearpatch.storage.leases import exclusive, leased
from linearpatch.sweep.manifest import FOLDER, Listed, Manifest, working_on
from linearpatch.sweep.status import Watch, Watched, status_table, time_left
from linearpatch.sweep.tables import duration


def record(folder, status="completed", seconds=10.0, **more):
    make_folder(folder)
    settings = {"command": "", "status": status, "timings_s": {"rank": seconds}, **more}
    write_record(Record(folder.name, "g", seed=0, config={}, **settings), folder)


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


def test_a_folder_that_is_in_use_is_rejected(tmp_path):
    used = pytest.raises(StorageError, match="is used by another run")
    with exclusive(tmp_path / LEASE_NAME, "it"), used, occupied(tmp_path):
        pass


def test_a_run_that_two_sweeps_list_is_one_run(tmp_path):
    for label, names in {"first": ["kept", "given_up"], "second": ["kept", "added"]}.items():
        jobs = tuple(Listed(name, "run", name) for name in names)
        make_folder(tmp_path / FOLDER)
        (tmp_path / FOLDER / f"{label}.json").write_text(json.dumps(asdict(Manifest(label, time.time(), jobs))))
    record(tmp_path / "kept")
    record(tmp_path / "alone")
    jobs = Watch(tmp_path).look().jobs
    found = {job.name: job.now.state for job in jobs}
    assert found == {"kept": "completed", "given_up": "waiting", "added": "waiting", "alone": "completed"}
    assert len(jobs) == len(found)


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
    found = {job.name: job.now.state for job in Watch(tmp_path).look().jobs}
    assert found == {"one": "completed", "two": "failed"}
    assert main(["status", str(tmp_path)]) == 1
    assert "no such thing" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "one")]) == 0
    assert main(["status", str(tmp_path / "nowhere")]) == 1
    assert "holds neither runs nor a sweep" in capsys.readouterr().err


def test_a_folder_of_sweeps_says_where_they_are(tmp_path, capsys):
    record(tmp_path / "small" / "one")
    (tmp_path / "large" / ".sweeps").mkdir(parents=True)
    assert main(["status", str(tmp_path)]) == 1
    assert f"or of a run: {tmp_path}/large, {tmp_path}/small." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def listed_in(folder, label, jobs, command, working_dir, trials_left=0):
    make_folder(folder / FOLDER)
    manifest = Manifest(label, time.time(), tuple(jobs), command, str(working_dir), trials_left)
    (folder / FOLDER / f"{label}.json").write_text(json.dumps(asdict(manifest)))


WORDS = ["linearpatch", "run", "-m", "patch=none,rotate", "corpus.path=a 'b' $c.txt", "output_dir=S"]


def test_a_sweep_that_nobody_works_on_says_how_to_resume_it(tmp_path, capsys):
    folder = tmp_path / "S"
    jobs = [Listed("a", "run", "a"), Listed("b", "run", "b"), Listed("c", "run", "c", error="impossible")]
    listed_in(folder, "sweep-1", jobs, shlex.join([*WORDS, "force=true"]), tmp_path)
    record(folder / "a", "completed")
    assert main(["status", str(folder)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "resume" in line]
    what, _, command = line.partition(" resume with: ")
    assert what == "sweep sweep-1: not running;"
    assert shlex.split(command) == WORDS  # pasted, a shell gives the same words
    with leased(folder / FOLDER / "sweep-1.0123abcd.lease", "the sweep"):
        overview = Watch(folder).look()
        assert (overview.advice, overview.is_over) == ((), False)
    record(folder / "b", "running")  # its process died
    record(folder / "c", "failed")
    overview = Watch(folder).look()
    assert overview.is_over
    assert [job.now.state for job in overview.jobs] == ["completed", "lost", "failed"]
    with occupied(folder / "b"):  # a job of a cluster continues without the sweep
        assert Watch(folder).look().advice == ()
    record(folder / "b", "failed")  # the sweep had its end
    assert Watch(folder).look().advice == ()


def test_a_search_with_trials_left_is_not_complete(tmp_path):
    folder = tmp_path / "S"
    record(folder / "a", "completed")
    listed_in(folder, "search-1", [Listed("a", "run", "a")], shlex.join(WORDS), tmp_path, trials_left=3)
    stopped = Watch(folder).look()
    assert (stopped.is_over, stopped.is_complete) == (True, False)
    assert "search-1: not running; resume with: " in stopped.advice[0]
    with working_on(folder, "search-1"):  # between two of its trials
        between = Watch(folder).look()
    assert (between.is_over, between.advice) == (False, ())
    listed_in(folder, "search-1", [Listed("a", "run", "a")], shlex.join(WORDS), tmp_path)
    assert Watch(folder).look().is_complete


def test_a_run_that_nobody_works_on_says_how_to_resume_it(tmp_path, capsys, monkeypatch):
    place = tmp_path / "my runs" / "run"
    (tmp_path / "elsewhere 1").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere 1")
    with occupied(place), steps("questions", 3):
        left = (place / "progress.json").read_text()
    (place / "progress.json").write_text(left)  # as a killed process leaves it
    words = ["linearpatch", "run", "patch.ridge=0.1", "corpus.path=it's.txt"]
    record(place, "running", command=shlex.join(words))
    monkeypatch.chdir(tmp_path)
    assert main(["status", str(place.parent), "--once"]) == 1
    out = capsys.readouterr().out
    assert "1 not running" in out
    (line,) = [line for line in out.splitlines() if "resume" in line]
    command = line.partition("run: not running; resume with: ")[2]
    assert shlex.split(command) == ["cd", str(tmp_path / "elsewhere 1"), "&&", *words]
    for forged in ("rm -rf /", "linearpatch run 'x", ""):
        record(place, "running", command=forged)
        assert Watch(place).look().advice == ("run: not running; resume it by repeating the call that started it",)


def test_a_shared_step_is_called_by_what_it_does_and_for_whom(tmp_path):
    jobs = [Listed("dense-0123", "dense", "d", serves=("a", "b", "c")), Listed("dense-4567", "dense", "e")]
    listed_in(tmp_path, "s", jobs, "", tmp_path)
    titles = [job.title for job in Watch(tmp_path).look().jobs]
    assert titles == ["evaluate dense for a, b and 1 more", "dense-4567 (evaluate dense)"]


@pytest.mark.parametrize("alive", [True, False])
def test_what_another_machine_works_on_is_told_from_what_died_there(tmp_path, monkeypatch, alive):
    monkeypatch.setenv("LINEARPATCH_LEASE_S", "3")
    record(tmp_path / "run", "running")
    path = tmp_path / "run" / LEASE_NAME
    with leased(path, "the run"):
        text = path.read_text()
    path.write_text(re.sub("host=.*", "host=elsewhere", text))
    os.utime(path, (1, 1))

    def refresh():
        while not stopped.wait(0.2):
            os.utime(path)

    stopped = threading.Event()
    refreshing = threading.Thread(target=refresh)
    if alive:
        refreshing.start()
    began = time.monotonic()
    overview = Watch(tmp_path).look()
    stopped.set()
    assert time.monotonic() - began < 2.5  # sooner than it could be taken over
    assert overview.jobs[0].now.state == ("running" if alive else "lost")
    assert overview.is_over != alive


def test_a_step_that_a_later_sweep_did_in_another_way_is_not_shown():
    step = Watched("statistics-1", "statistics", RunState("waiting"), ("a", "b"))
    assert step.is_superseded({"a", "b", "c"})
    assert not step.is_superseded({"a"})
    assert not Watched("a", "run", RunState("waiting")).is_superseded({"a"})


def test_a_shared_step_that_was_stopped_is_shown(tmp_path):
    steps = [Watched(f"{state}-1", "statistics", RunState(state), ("a",)) for state in ("interrupted", "completed")]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(status_table(tmp_path, steps))
    text = console.export_text()
    assert text.count("statistics for") == 1
    assert steps[0].is_superseded({"a"})
    assert not steps[0].is_superseded({"b"})
