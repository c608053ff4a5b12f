"""Sweeps and runs whose jobs are killed, or that are stopped: recorded, nothing finished is lost, and they resume."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from small_sweeps import APART, GRID, can_be_elsewhere, kill_all, kill_one, left_behind, records, running, start, states

KILLS = int(os.environ.get("LINEARPATCH_KILLS", "2"))  # of the test that kills jobs; benchmarks/README.md took 20


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_job_that_is_killed_is_recorded_and_the_others_continue():
    process = start(*APART, "output_dir=S")
    assert kill_one("S")
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "killed by SIGKILL (the machine may have run out of memory)" in said
    assert sorted(states("S").values()) == ["completed", "failed"]
    assert start(*APART, "output_dir=S").wait() == 0
    assert set(states("S").values()) == {"completed"}


@pytest.mark.slow
def test_jobs_killed_at_random_lose_nothing_that_is_finished(tmp_path, monkeypatch):
    grid = (*GRID, "model.settings.num_hidden_layers=10")  # SLEB's search through 24 would take minutes, twice
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "undisturbed"))
    assert start(*grid, "output_dir=undisturbed_sweep").wait() == 0
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "disturbed"))
    monkeypatch.setenv("LINEARPATCH_LEASE_S", "3")
    generator, done, begun = random.Random(0), 0, 0
    finished: dict[str, int] = {}
    while True:
        begun += 1
        elsewhere = begun == 2 and can_be_elsewhere()
        process = start(*grid, "output_dir=S", elsewhere=elsewhere)
        if elsewhere:
            done += kill_all(process, "S", generator.uniform(0, 3))
            continue
        while process.poll() is None and done < KILLS:
            time.sleep(generator.uniform(0, 3))
            done += kill_one("S", within_s=1.0)
        process.communicate()
        now = {file: (file.parent / "result.json").stat().st_mtime_ns for file in Path("S").glob("*/config.yaml")}
        completed = {str(file): now[file] for file in now if states("S")[file.parent.name] == "completed"}
        assert finished.items() <= completed.items()  # what was finished was not touched again
        finished = completed
        if process.returncode == 0:
            break
    assert done >= KILLS
    assert records("S") == records("undisturbed_sweep")
    assert left_behind("S", tmp_path / "disturbed", tmp_path / "undisturbed") == []


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_resumes(tmp_path, monkeypatch):
    words = ("pruner=sleb", "patch=rotate", "save_model=true", "model.settings.num_hidden_layers=10")
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "undisturbed"))
    # A name as long as S: the card and the manifest hold it, and the record how large the checkpoint is.
    assert start(*words, "output_dir=U/run", many=False).wait() == 0
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "disturbed"))
    monkeypatch.setenv("LINEARPATCH_LEASE_S", "3")
    generator, done = random.Random(0), 0
    while done < KILLS:
        elsewhere = done == 1 and can_be_elsewhere()
        process = start(*words, "output_dir=S/run", many=False, elsewhere=elsewhere)
        if kill_all(process, "S", generator.uniform(0, 4)):
            done += 1
        else:  # it was faster: from the beginning
            assert process.returncode == 0
            for folder in ("S", tmp_path / "disturbed"):
                shutil.rmtree(folder)
    assert start(*words, "output_dir=S/run", many=False).wait() == 0
    assert records("S") == records("U")
    weights = [Path(folder, "run/model/model.safetensors").read_bytes() for folder in ("S", "U")]
    assert weights[0] == weights[1]
    assert left_behind("S", tmp_path / "disturbed", tmp_path / "undisturbed") == []


@pytest.fixture
def _heeded():
    """A background job of a shell ignores SIGINT, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_says_so_and_resumes_later(number):
    process = start(*APART, "output_dir=S")
    while not running("S"):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.communicate()
    assert process.returncode != 0
    until = time.monotonic() + 30
    while running("S") and time.monotonic() < until:  # no job outlives the sweep
        time.sleep(0.1)
    left = [json.loads(file.read_text())["status"] for file in Path("S").glob("**/result.json")]
    assert set(left) <= {"completed", "interrupted"}
    assert "interrupted" in left
    assert start(*APART, "output_dir=S").wait() == 0
    assert set(states("S").values()) == {"completed"}


@pytest.mark.slow
def test_two_sweeps_at_once_wait_for_each_other():
    both = [start("patch=none,rotate", "pruner=streamline", "output_dir=S") for _ in range(2)]
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]
    assert list(states("S").values()) == ["completed"] * 2
