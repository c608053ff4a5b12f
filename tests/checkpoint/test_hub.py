"""Pushing, with a hub that only writes down what it is told."""

import pytest

from linearpatch.checkpoint import hub
from linearpatch.checkpoint.hub import check_repository, push
from linearpatch.cli import main
from linearpatch.errors import ConfigError, StorageError
from linearpatch.results.files import read_record

FAST = ["debug=tiny", "model=random", "num_pruned_layers=3", "tracker=none", "save_model=true", "stages=[dense]"]


class FakeHub:
    calls: list = []  # noqa: RUF012

    def create_repo(self, repository, **settings):
        self.calls.append(("create", repository, settings))

    def upload_folder(self, *, repo_id, folder_path, **_):
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
        return f"https://hub/{repo_id}"


@pytest.fixture
def fake(monkeypatch, session_cache):
    FakeHub.calls = []
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return FakeHub


def test_a_run_pushes_only_when_asked_and_privately(tmp_path, fake):
    assert main(["run", *FAST, f"output_dir={tmp_path}/D"]) == 0
    assert fake.calls == []
    assert main(["run", *FAST, f"output_dir={tmp_path}/D", "push_to_hub=me/small"]) == 0
    created, uploaded = fake.calls
    assert created == ("create", "me/small", {"private": True, "exist_ok": True})
    assert uploaded[:2] == ("upload", "me/small")
    assert {"README.md", "config.json", "model.safetensors", "pruning.json"} <= set(uploaded[2])
    assert read_record(tmp_path / "D").checkpoint.pushed_to == "https://hub/me/small"


def test_a_push_that_fails_keeps_the_folder_and_says_how_to_continue(tmp_path, fake, monkeypatch, capsys):
    def reject(*_, **__):
        raise RuntimeError("403 Forbidden")

    monkeypatch.setattr(FakeHub, "create_repo", reject)
    assert main(["run", *FAST, f"output_dir={tmp_path}/D", "push_to_hub=me/small"]) == 1
    assert "hf upload me/small" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "D" / "model" / "pruning.json").exists()
    with pytest.raises(StorageError, match="403 Forbidden"):
        push(tmp_path / "D" / "model", "me/small")


def test_what_could_only_fail_later_is_rejected_at_once(fake, monkeypatch):
    check_repository("me/small")
    with pytest.raises(ConfigError, match="is not the name"):
        check_repository("a/b/c")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        check_repository("me/small")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        check_repository("me/small")
