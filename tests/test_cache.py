import errno
import multiprocessing
import os
import time

import pytest
import torch

from linearpatch.errors import StorageError
from linearpatch.storage.cache import Cache, Entry, digest_of
from linearpatch.storage.files import write_atomically

KEY = {"model": "m", "n": 3}


def entry(value=1.0):
    return Entry({"x": torch.tensor([value])}, {"name": "v"})


def test_what_was_stored_is_read_by_another_process_memory(tmp_path):
    Cache(tmp_path).put("kind", KEY, entry())
    found = Cache(tmp_path).get("kind", KEY, lambda: pytest.fail("computed again"))
    assert torch.equal(found.tensors["x"], torch.tensor([1.0]))
    assert found.facts == {"name": "v"}


def test_any_difference_in_the_key_is_another_entry(tmp_path):
    cache = Cache(tmp_path)
    cache.put("kind", KEY, entry())
    assert cache.find("kind", {**KEY, "n": 4}) is None
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_entry_is_recomputed(tmp_path, damage, caplog):
    Cache(tmp_path).put("kind", KEY, entry())
    file = next((tmp_path / "kind").glob("*.safetensors"))
    file.write_bytes(damage(file.read_bytes()))
    found = Cache(tmp_path).get("kind", KEY, lambda: entry(2.0))
    assert found.tensors["x"].item() == 2
    assert "damaged" in caplog.text
    assert Cache(tmp_path).find("kind", KEY).tensors["x"].item() == 2


def test_what_fails_stores_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Cache(tmp_path).get("kind", KEY, lambda: 1 / 0)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_leaves_no_trace(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Free some space"):
        Cache(tmp_path).put("kind", KEY, entry())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_old_file_survives_a_failed_write(tmp_path, monkeypatch):
    write_atomically(tmp_path / "f", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError):
        write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


def _compute_slowly(root, log):
    def compute():
        with log.open("a") as file:
            file.write("computed\n")
        time.sleep(0.5)
        return entry()

    Cache(root).get("kind", KEY, compute)


def test_concurrent_jobs_wait_for_the_one_that_computes(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_compute_slowly, args=(tmp_path, tmp_path / "log")) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "computed\n"


def test_a_lock_whose_owner_died_is_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    job = context.Process(target=_hold_lock_and_die, args=(tmp_path,))
    job.start()
    job.join()
    assert Cache(tmp_path).get("kind", KEY, entry).facts == {"name": "v"}


def _hold_lock_and_die(root):
    import os
    import signal

    with Cache(root).locked("kind", KEY):
        os.kill(os.getpid(), signal.SIGKILL)


def replaced_by(path, what):
    path.unlink()
    if what == "full folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to itself":
        path.symlink_to(path)
    elif what == "dangling link":
        path.symlink_to("/nowhere")
    elif what == "other facts":
        Cache(path.parent.parent).put("kind", KEY, entry())
        content = path.read_bytes()
        path.write_bytes(content.replace(b'"facts"', b'"fakts"'))


@pytest.mark.parametrize("what", ["full folder", "folder", "pipe", "link to itself", "dangling link", "other facts"])
def test_an_entry_that_is_replaced_by_something_else_is_recomputed(tmp_path, what):
    Cache(tmp_path).put("kind", KEY, entry())
    path = next((tmp_path / "kind").glob("*.safetensors"))
    replaced_by(path, what)
    assert Cache(tmp_path).get("kind", KEY, lambda: entry(2.0)).tensors["x"].item() == 2
    assert Cache(tmp_path).find("kind", KEY).tensors["x"].item() == 2
    if what == "full folder":  # nobody here made it
        assert [file.read_text() for file in tmp_path.rglob("mine.txt")] == ["mine"]


def test_tensors_that_share_memory_are_kept_each(tmp_path):
    documents = torch.arange(6)
    Cache(tmp_path).put("kind", KEY, Entry({"a": documents, "b": documents, "c": documents[:3]}))
    read = Cache(tmp_path).find("kind", KEY)
    assert torch.equal(read.tensors["a"], documents)
    assert torch.equal(read.tensors["b"], documents)
    assert torch.equal(read.tensors["c"], documents[:3])
