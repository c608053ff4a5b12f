"""The cache is listed, emptied and checked; a machine is looked over."""

import os
import time

import pytest
import torch

from linearpatch.cache import Cache, Entry
from linearpatch.cli import main
from linearpatch.doctor import examine
from linearpatch.errors import ConfigError
from linearpatch.leases import leased
from linearpatch.upkeep import contents, damaged, remove


@pytest.fixture
def root(tmp_path):
    cache = Cache(tmp_path / "cache")
    for index in range(3):
        cache.put("statistic", {"i": index}, Entry({"x": torch.zeros(100)}, {"index": index}))
    cache.put("targets", {}, Entry({"x": torch.zeros(1000)}))
    (tmp_path / "cache" / "models" / "small").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "small" / "weights").write_bytes(b"0" * 500)
    return tmp_path / "cache"


def test_what_is_kept_by_kind(root):
    found = {kept.kind: kept for kept in contents(root)}
    assert {kind: kept.count for kind, kept in found.items()} == {"statistic": 3, "targets": 1, "models": 1}
    assert found["models"].size == 500
    assert found["targets"].size > 4000
    assert contents(root / "nowhere") == []


def test_a_kind_is_removed_but_for_what_somebody_works_on(root):
    first = next((root / "statistic").glob("*.safetensors"))
    with leased(first.with_suffix(".lease"), "statistic"):
        assert remove(root, "statistic")[0] == 2
    assert first.exists()
    assert remove(root, "all")[0] == 3
    assert contents(root) == []
    with pytest.raises(ConfigError, match="Allowed: all"):
        remove(root, "targets")


def test_only_old_entries_are_removed(root):
    old = next((root / "statistic").glob("*.safetensors"))
    day = 86_400
    os.utime(old, (time.time() - 3 * day,) * 2)
    assert remove(root, "all", older_than_s=2 * day)[0] == 1
    assert not old.exists()


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
    assert main(["cache", "rm", "targets", *place]) == 0
    assert "removed 1 entry," in capsys.readouterr().out
    assert main(["cache", "rm", "all", "--older-than", "-3", *place]) == 1
    assert "--older-than is -3.0. Allowed: at least 0." in capsys.readouterr().err
    assert len(contents(root)) == 2
    assert main(["cache", "rm", *place]) == 1
    assert "Name a kind" in capsys.readouterr().err


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
