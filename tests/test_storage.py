"""Files appear whole or not at all, with the permissions the umask gives; what killed processes left is told apart."""

import multiprocessing
import os
import signal
import stat
import time

import pytest
import torch
from safetensors.torch import save_file

from linearpatch.errors import StorageError
from linearpatch.models.fingerprint import file_hash
from linearpatch.results.record import Record
from linearpatch.results.recording import recording
from linearpatch.storage.cache import Cache, Entry
from linearpatch.storage.cache_folder import is_marked, mark_cache
from linearpatch.storage.files import open_log, replacing_folder, write_atomically
from linearpatch.storage.temporary import OLD_S, Temporary, remove_leftovers, temporaries, temporary_path, this_machine
from linearpatch.sweep.worker import OUTPUT_NAME, last_output, redirect_output

SPAWN = multiprocessing.get_context("spawn")
KEY = {"model": "m"}


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_umask_holds_for_files_folders_and_logs(tmp_path, umask):
    write_atomically(tmp_path / "below" / "file", b"x")
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "card.md").write_text("x")
        (folder / "parts").mkdir()
        save_file({"x": torch.zeros(2)}, folder / "parts" / "weights.safetensors")  # makes a private file by itself
    open_log(tmp_path / "logs" / "run.log").close()
    with recording(Record("run", None, "", 0, {}), tmp_path / "run"):
        pass
    Cache(tmp_path / "cache").put("kind", KEY, Entry({"x": torch.zeros(2)}))
    made = list(tmp_path.rglob("*"))
    assert len(made) >= 14
    for path in made:
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def record_in(folder):
    with recording(Record("run", None, "", 0, {}), folder):
        pass


@pytest.mark.parametrize("what", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["run.log", OUTPUT_NAME])
def test_a_log_is_written_to_a_file_and_nothing_else(tmp_path, what, name):
    target, place = tmp_path / "precious.txt", tmp_path / "run" / name
    place.parent.mkdir()
    if "link" in what:
        place.symlink_to(target)
        if what == "link":
            target.write_text("precious")
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    message = "is a symbolic link to .*precious" if "link" in what else "is not a file"
    with pytest.raises(StorageError, match=rf"{name} {message}.* Remove it, or choose another output_dir"):
        record_in(place.parent) if name == "run.log" else redirect_output(place.parent)
    assert last_output(place.parent) == ""
    assert not (place.parent / "result.json").exists()
    if what == "link":
        assert target.read_text() == "precious"
    elif what == "dangling link":
        assert not target.exists()


def test_a_cache_with_something_half_written_is_still_known_as_one(tmp_path):
    for kind, name in {
        "statistic": f"{'0' * 32}.safetensors",
        "fingerprint": f"{'0' * 32}.json",
        "models": "m",
    }.items():
        place = temporary_path(tmp_path / kind / name)
        place.mkdir(parents=True) if kind == "models" else write_atomically(place, b"")
    mark_cache(tmp_path)
    assert is_marked(tmp_path)


def write_and_die(folder):
    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die
    write_atomically(folder / f"{'0' * 32}.safetensors", b"half")


@pytest.mark.slow
def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path):
    process = SPAWN.Process(target=write_and_die, args=(tmp_path,))
    process.start()
    process.join()
    (left,) = temporaries(tmp_path)
    assert (left.machine, left.process, left.size) == (this_machine(), process.pid, 4)
    assert left.is_leftover
    mine = temporary_path(tmp_path / "another")  # somebody alive is writing it
    mine.write_text("")
    (tmp_path / ".notes~of~mine.tmp").write_text("")
    assert remove_leftovers(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, ".notes~of~mine.tmp"])


@pytest.mark.parametrize(
    "name",
    [
        ".model~elsewhere-00000000~1~0123abcd.tmp",
        f".{'a' * 32}.safetensors.k3_j2h1g",  # as earlier versions named them
        f"{'a' * 32}.lease.break.4711.{'b' * 32}",
    ],
)
def test_what_another_machine_writes_is_left_until_it_is_old(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "weights").write_bytes(b"0" * 10)
    assert remove_leftovers(tmp_path) == 0
    assert temporaries(tmp_path)[0].size == 10
    os.utime(tmp_path / name, (1, 1))
    assert remove_leftovers(tmp_path) == 0  # what is in it is new
    os.utime(tmp_path / name / "weights", (1, time.time() - OLD_S - 1))
    assert remove_leftovers(tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_names_of_any_length_have_temporary_names(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_atomically(tmp_path / name, b"x")
        place = temporary_path(tmp_path / name)
        place.write_text("")
        assert temporaries(tmp_path) == [Temporary(place, this_machine(), os.getpid())]
        place.unlink()


@pytest.mark.parametrize("memo", [None, b"[]", b"{", b'{"file": 3}', b'{"sha256": 3}'])
def test_a_hash_that_cannot_be_remembered_is_computed(tmp_path, memo):
    file, cache = tmp_path / "config.json", tmp_path / "cache"
    file.write_text("{}")
    expected = file_hash(file, cache)
    (place,) = (cache / "fingerprint").iterdir()
    if memo is None:
        place.unlink()
        place.parent.rmdir()
        place.parent.write_text("a file in place of the folder: nothing can be written, whoever one is")
    else:
        place.write_bytes(memo)
    assert file_hash(file, cache) == expected
