"""Leases: waited for, refused, taken over from the dead."""

import multiprocessing
import os
import signal
import time

import pytest

from linearpatch.errors import StorageError
from linearpatch.leases import exclusive, is_held, leased

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
    assert f"waiting for another run that computes the same (statistic, process {process.pid} on" in caplog.text
    assert not path.exists()


def test_what_belongs_to_one_alone_is_refused_to_others(tmp_path):
    path = tmp_path / "a.lease"
    process = held_by_another(path)
    assert is_held(path)
    refused = pytest.raises(StorageError, match=f"in the works by another process .process {process.pid} on")
    with refused, exclusive(path, "the folder"):
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


def test_a_lease_of_another_machine_is_taken_over_when_nobody_renews_it(tmp_path, monkeypatch):
    monkeypatch.setattr("linearpatch.leases.LEASE_S", 1.5)
    path = tmp_path / "a.lease"
    process = SPAWN.Process(target=hold_and_die, args=(path,))
    process.start()
    process.join()
    other = path.read_text().replace(f"host={os.uname().nodename}", "host=elsewhere")
    path.write_text(other.replace("duration=60.0", "duration=1.5"))
    began = time.monotonic()
    with leased(path, "work"):
        assert 1 < time.monotonic() - began < 10


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Can't create the folder"), leased(tmp_path / "file" / "a.lease", "work"):
        pass
