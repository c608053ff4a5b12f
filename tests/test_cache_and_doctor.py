"""The cache is listed, emptied and checked; a machine is looked over."""

import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from linearpatch.cli import main
from linearpatch.cli.machine import examine
from linearpatch.errors import ConfigError, StorageError
from linearpatch.storage.administration import contents, damaged, removable, remove
from linearpatch.storage.cache import Cache, Entry
from linearpatch.storage.cache_folder import FIRST_MODEL, MARKER, MARKER_TEXT, is_marked
from linearpatch.storage.leases import leased
from linearpatch.storage.temporary import temporary_path


@pytest.fixture
def root(tmp_path):
    cache = Cache(tmp_path / "cache")
    for index in range(3):
        cache.put("statistic", {"i": index}, Entry({"x": torch.zeros(100)}, {"index": index}))
    cache.put("targets", {}, Entry({"x": torch.zeros(1000)}))
    model = tmp_path / "cache" / "models" / "small"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"0" * 500)
    (model / MARKER).write_text(MARKER_TEXT)
    return tmp_path / "cache"


def test_what_is_kept_by_kind(root):
    found = {kept.kind: kept for kept in contents(root)}
    assert {kind: kept.count for kind, kept in found.items()} == {"statistic": 3, "targets": 1, "models": 1}
    assert found["models"].size == 500 + len(MARKER_TEXT)
    assert found["targets"].size > 4000
    assert contents(root / "nowhere") == []


def test_a_kind_is_removed_but_for_what_somebody_works_on(root):
    first = next((root / "statistic").glob("*.safetensors"))
    with leased(first.with_suffix(".lease"), "statistic"):
        assert remove(removable(root, "statistic"))[0] == 2
    assert first.exists()
    everything = removable(root, "all")
    with leased(first.with_suffix(".lease"), "statistic"):  # since it was listed
        assert remove(everything)[0] == 2
    assert remove(removable(root, "all"))[0] == 1
    assert contents(root) == []
    with pytest.raises(ConfigError, match="Allowed: all"):
        removable(root, "targets")


def test_only_old_entries_are_removed(root):
    old = next((root / "statistic").glob("*.safetensors"))
    day = 86_400
    os.utime(old, (time.time() - 3 * day,) * 2)
    assert remove(removable(root, "all", older_than_s=2 * day))[0] == 1
    assert not old.exists()


@pytest.fixture
def hub_model(tmp_path):
    """A folder as people keep models in."""
    for name in ("models/llama/model.safetensors", "models/llama/config.json", "weights/a.safetensors", "notes.txt"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"0" * 10)
    return tmp_path / "mine"


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink())


@pytest.mark.parametrize("kind", ["all", "models", "weights"])
def test_nothing_is_removed_from_a_folder_without_the_marker(hub_model, kind, said):
    before = files_of(hub_model)
    assert main(["cache", "rm", kind, "--yes", "--dir", str(hub_model)]) == 1
    assert f"isn't a cache of linearpatch: it holds no {MARKER}" in said()
    assert files_of(hub_model) == before


@pytest.mark.parametrize("text", ["", "Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n"])
def test_the_marker_of_another_program_is_not_ours(hub_model, text):
    (hub_model / MARKER).write_text(text)
    with pytest.raises(StorageError, match="isn't a cache of linearpatch"):
        removable(hub_model, "all")


def test_a_folder_with_other_files_never_becomes_a_cache(hub_model, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("linearpatch"), "propagate", True)
    before = files_of(hub_model)
    Cache(hub_model).put("statistic", {}, Entry({"x": torch.zeros(1)}))
    assert not is_marked(hub_model)
    assert "models/llama" in caplog.text
    with pytest.raises(StorageError, match="isn't a cache"):
        removable(hub_model, "all")
    assert set(before) < set(files_of(hub_model))


def test_other_files_in_a_cache_stay(root, hub_model):
    """What somebody puts into a cache afterwards has other names, or no marker."""
    hub_model.rename(root / "mine")
    for name in ("models/llama/model.safetensors", "statistic/model-00001-of-00002.safetensors", "statistic/x.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"0")
    kept = {name for name in files_of(root) if name.startswith("mine/")}
    assert remove(removable(root, "all"))[0] == 5
    others = {"models/llama/model.safetensors", "statistic/model-00001-of-00002.safetensors", "statistic/x.json"}
    assert set(files_of(root)) == kept | others | {MARKER}


@pytest.mark.parametrize("link", ["entry", "kind", "model", "models"])
def test_symbolic_links_are_not_followed(root, tmp_path, link):
    name = "0" * 32 + ".safetensors"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "models" / "big").mkdir(parents=True)
    (elsewhere / "models" / "big" / MARKER).write_text(MARKER_TEXT)
    (elsewhere / name).write_bytes(b"0")
    if link == "entry":
        (root / "targets" / name).symlink_to(elsewhere / name)
    elif link == "kind":
        (root / "linked").symlink_to(elsewhere)
    elif link == "model":
        (root / "models" / "big").symlink_to(elsewhere / "models" / "big")
    else:
        shutil.rmtree(root / "models")
        (root / "models").symlink_to(elsewhere / "models")
    before = files_of(elsewhere)
    assert remove(removable(root, "all"))[0] == (4 if link == "models" else 5)
    assert files_of(elsewhere) == before


def test_a_cache_of_an_earlier_version_is_marked_on_its_next_use(root):
    (root / MARKER).unlink()
    (root / "fingerprint").mkdir()
    (root / "fingerprint" / f"{'0' * 32}.json").write_text("{}")
    (root / "models" / "small").rename(root / "models" / FIRST_MODEL)
    (root / "models" / FIRST_MODEL / MARKER).unlink()
    (root / "models" / "other-0.1.lease").touch()
    with pytest.raises(StorageError, match="earlier version"):
        removable(root, "all")
    Cache(root).put("statistic", {"i": 0}, Entry({"x": torch.zeros(100)}, {"index": 0}))
    assert remove(removable(root, "all"))[0] == 5


def test_marking_by_hand_as_the_error_says_works(root, said):
    (root / MARKER).unlink()
    assert main(["cache", "rm", "all", "--yes", "--dir", str(root)]) == 1
    lines = said().split("with these two lines: ")[1]
    first, comment = lines.split(" # ")
    (root / MARKER).write_text(f"{first}\n# {comment}\n")
    assert main(["cache", "rm", "all", "--yes", "--dir", str(root)]) == 0


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("yes", 0), ("", 3), ("n", 3), ("all", 3)])
def test_removal_is_listed_and_confirmed(root, capsys, monkeypatch, answer, left):
    asked = []
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    assert main(["cache", "rm", "all", "--dir", str(root)]) == (1 if left else 0)
    assert asked == ["Remove these entries? [y/N] "]
    assert "statistic" in capsys.readouterr().out
    assert len(contents(root)) == left


def test_without_a_terminal_nothing_is_removed_unasked(root, said):
    assert main(["cache", "rm", "all", "--dir", str(root)]) == 1
    assert "Add --yes" in said()
    assert len(contents(root)) == 3


@pytest.mark.parametrize("where", ["tensor", "facts", "end"])
def test_damage_is_found_wherever_it_is(root, where):
    file = next((root / "statistic").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if where == "facts":
        place = content.index(b"index")
        content[place] ^= 1
    elif where == "tensor":
        content[-3] ^= 1
    else:
        del content[-50:]
    file.write_bytes(content)
    assert [path for path, _ in damaged(root)] == [file]


def test_the_command_line(root, capsys):
    place = ["--dir", str(root)]
    assert main(["cache", "ls", *place]) == 0
    assert "statistic" in capsys.readouterr().out
    assert main(["cache", "verify", *place]) == 0
    assert "4 entries, 0 damaged" in capsys.readouterr().out
    next((root / "targets").glob("*.safetensors")).write_bytes(b"broken")
    assert main(["cache", "verify", *place]) == 1
    assert main(["cache", "rm", "targets", "--yes", *place]) == 0
    assert "removed 1 entry," in capsys.readouterr().out
    assert main(["cache", "rm", "all", "--older-than", "-3", *place]) == 1
    assert "--older-than is -3.0. Allowed: at least 0." in capsys.readouterr().err
    assert len(contents(root)) == 2
    assert main(["cache", "rm", "all", "--yes", "--dir", str(root / "nowhere")]) == 0
    assert "Nothing to remove" in capsys.readouterr().out
    assert main(["cache", "rm", *place]) == 1
    assert "Name a kind" in capsys.readouterr().err


def test_what_killed_processes_left_half_written_is_seen_and_removed(root, capsys):
    place = ["--dir", str(root)]
    dead = subprocess.Popen(["true"])
    dead.wait()
    half = temporary_path(root / "statistic" / f"{'0' * 32}.safetensors")
    left = half.with_name(half.name.replace(f"~{os.getpid()}~", f"~{dead.pid}~"))
    folder = temporary_path(root / "models" / "big")
    folder = folder.with_name(folder.name.replace(f"~{os.getpid()}~", f"~{dead.pid}~"))
    folder.mkdir()
    for file in (half, left, folder / "weights"):
        file.write_bytes(b"0" * 2**20)
    lease = root / "statistic" / f"{'0' * 32}.lease"
    with leased(lease, "work"):
        text = lease.read_text()
    lease.write_text(text.replace(f"pid={os.getpid()}", f"pid={dead.pid}"))
    assert {kept.kind: (kept.count, kept.size) for kept in contents(root)}["temporary"] == (3, 3 * 2**20)
    assert main(["cache", "ls", *place]) == 0
    assert "temporary" in capsys.readouterr().out
    assert main(["cache", "verify", *place]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 temporary files of killed processes, 2.0 MiB; `linearpatch cache rm temporary` removes them" in out
    assert main(["cache", "rm", "temporary", "--yes", *place]) == 0
    assert "removed 2 entries, 2.0 MiB" in capsys.readouterr().out
    assert half.exists()  # this process lives
    assert [path for path in (left, folder, lease) if path.exists()] == []


def test_a_machine_is_looked_over(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "data" / "wikitext").mkdir(parents=True)
    found = {finding.what: finding for finding in examine(tmp_path / "data")}
    assert found["packages"].state == "ok"
    assert found["local data sets"].detail.endswith("wikitext")
    assert found["W&B"].state == "ok"
    assert found["cache"].state in ("ok", "problem")  # as full as the disk is
    assert {"python", "cpu", "hub", "embedded model", "extra ray"} <= set(found)
    monkeypatch.setenv("LINEARPATCH_CACHE", "/proc/nowhere")
    assert {f.what: f.state for f in examine(tmp_path / "nowhere")}["cache"] == "problem"
