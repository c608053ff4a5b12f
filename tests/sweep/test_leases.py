"""Leases: waited for, rejected, taken over from the dead."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from linearpatch.errors import ConfigError, StorageError
from linearpatch.storage.cache_folder import mark_cache
from linearpatch.storage.leases import Lease, Occupied, exclusive, is_held, leased, wait_for
from linearpatch.storage.leftovers import tidied

SPAWN = multiprocessing.get_context("spawn")


def hold(path, seconds):
    with leased(path, "work"):
        time.sleep(seconds)


def hold_and_die(path):
    with leased(path, "work"):
        os.kill(os.getpid(), signal.SIGKILL)


def held_by_another(path, seconds=3.0):
    process = SPAWN.Process(target=hold, args=(path, seconds))
    process.start()
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return process


def test_one_waits_for_the_other(tmp_path, caplog):
    path = tmp_path / "a.lease"
    process = held_by_another(path)
    caplog.set_level("INFO", "linearpatch")
    with leased(path, "statistic"):
        assert not process.is_alive() or process.join(5) is None
    assert f"waiting for another process to compute statistic (process {process.pid} on" in caplog.text
    assert not path.exists()


def test_what_belongs_to_one_alone_is_rejected_to_others(tmp_path):
    path = tmp_path / "a.lease"
    process = held_by_another(path)
    assert is_held(path)
    rejected = pytest.raises(StorageError, match=f"is used by another run .process {process.pid} on")
    with rejected, exclusive(path, "the folder"):
        pytest.fail("it is held")
    process.join()
    assert not is_held(path)


def test_a_lease_whose_owner_died_is_free_at_once(tmp_path):
    path = tmp_path / "a.lease"
    process = SPAWN.Process(target=hold_and_die, args=(path,))
    process.start()
    process.join()
    assert path.exists()
    assert not is_held(path)
    process = SPAWN.Process(target=hold_and_die, args=(path,))
    process.start()
    process.join()
    began = time.monotonic()
    with exclusive(path, "it"):
        assert time.monotonic() - began < 5


# What happens on another machine: its process numbers mean nothing here, so only its silence tells that it is dead.
ELSEWHERE = """
import socket, sys
socket.gethostname = lambda: "elsewhere"
from pathlib import Path
from linearpatch.storage.leases import leased
with leased(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def _fast(monkeypatch):
    monkeypatch.setenv("LINEARPATCH_LEASE_S", "2.4")


@pytest.fixture
def elsewhere(tmp_path, _fast):
    """The owner of a lease on another machine, and its file."""
    path = tmp_path / "a.lease"
    command = [sys.executable, "-c", ELSEWHERE, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert "host=elsewhere" in path.read_text()
    yield process, path
    process.kill()
    process.communicate()


def exclusively(path):
    with exclusive(path, "the folder"):
        assert path.exists()


def waiting(path):
    with leased(path, "work"):
        assert path.exists()


def probing(path):
    """What `status` does, looking again and again."""
    lease = Lease(path)
    while lease.is_held():
        time.sleep(0.1)


@pytest.mark.parametrize(
    "take", [exclusively, *(pytest.param(take, marks=pytest.mark.slow) for take in (waiting, wait_for, probing))]
)
def test_a_lease_of_another_machine_is_taken_over_when_nobody_refreshes_it(elsewhere, take):
    process, path = elsewhere
    process.kill()
    began = time.monotonic()
    take(path)
    assert 2 < time.monotonic() - began < 10
    assert not path.exists()


@pytest.mark.parametrize("mtime", [1, pytest.param(4e9, marks=pytest.mark.slow)])
def test_clocks_of_other_machines_mean_nothing(elsewhere, mtime):
    process, path = elsewhere
    process.send_signal(signal.SIGSTOP)  # so that it doesn't refresh its lease
    os.utime(path, (mtime, mtime))
    assert is_held(path)
    assert Lease(path).seems_abandoned == (mtime == 1)
    process.send_signal(signal.SIGCONT)
    with pytest.raises(Occupied, match=r"is used by another run .process .* on elsewhere.. Wait for it, or choose"):
        exclusively(path)
    assert Lease(path).is_alive()
    process.kill()
    os.utime(path, (mtime, mtime))
    assert not Lease(path).is_alive()
    exclusively(path)


def test_a_lease_that_is_refreshed_is_not_taken_over(elsewhere):
    process, path = elsewhere
    began, lease = time.monotonic(), Lease(path)
    while time.monotonic() - began < 5:  # twice as long as it takes to take one over
        assert lease.is_held()
        time.sleep(0.05)
    assert lease.was_refreshed
    assert process.poll() is None


def test_a_lease_of_another_pace_is_taken_over_at_that_pace(elsewhere, monkeypatch):
    process, path = elsewhere
    process.kill()
    monkeypatch.setenv("LINEARPATCH_LEASE_S", "5000")
    began = time.monotonic()
    exclusively(path)
    assert 2 < time.monotonic() - began < 10


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_pace_that_cannot_be(text, tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_LEASE_S", text)
    with pytest.raises(ConfigError, match=f"LINEARPATCH_LEASE_S is '{text}'. Allowed: a number of seconds above 0"):
        exclusively(tmp_path / "a.lease")


def test_a_folder_in_place_of_a_lease_is_told(tmp_path):
    (tmp_path / "a.lease").mkdir()
    with pytest.raises(StorageError, match=r"a\.lease is a folder"):
        waiting(tmp_path / "a.lease")


def cache_with_leftovers(root):
    mark_cache(root)
    kinds = [root / "pass", root / "targets"]
    for kind in kinds:
        kind.mkdir(parents=True)
    return [kind / f"{'0' * 32}.lease" for kind in kinds]


def test_what_is_left_in_a_cache_is_removed(tmp_path):
    root = tmp_path / "cache"
    for path in cache_with_leftovers(root):
        process = SPAWN.Process(target=hold_and_die, args=(path,))
        process.start()
        process.join()
        assert path.exists()
    mine = root / "pass" / "notes.lease"
    mine.write_text("not the name of a cache's lease")
    with tidied([root]):
        assert list(root.rglob("*.lease")) == [mine]


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path):
    path = tmp_path / "models" / f"{'0' * 32}.lease"
    path.parent.mkdir()
    path.write_text("mine")
    old = time.time() - 10_000
    os.utime(path, (old, old))
    with tidied([tmp_path]):
        assert path.exists()


def test_what_another_machine_left_in_a_cache_is_removed_once_it_was_watched_for_long(elsewhere):
    _, path = elsewhere
    root = path.parent / "cache"
    dead, alive = cache_with_leftovers(root)
    os.link(path, alive)  # its owner refreshes the file, whatever it is called
    dead.write_text(path.read_text().replace("token=", "token=0"))
    half = root / "targets" / f".{'1' * 32}.safetensors~elsewhere-00000000~1~01234567.tmp"
    half.write_bytes(b"0" * 100)
    growing = half.with_name(half.name.replace("~1~", "~2~"))
    growing.write_bytes(b"0")
    with tidied([root]):
        pass  # too short to tell
    assert half.exists()
    assert dead.exists()
    with tidied([root]):
        time.sleep(2.6)
        growing.write_bytes(b"01")
    assert not half.exists()
    assert not dead.exists()
    assert growing.exists()
    assert alive.exists()
    old = time.time() - 7200
    os.utime(growing, (old, old))
    with tidied([root]):
        assert not growing.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Can't create the folder"), leased(tmp_path / "file" / "a.lease", "work"):
        pass
