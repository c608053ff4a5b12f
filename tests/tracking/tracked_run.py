"""A small run that trains, followed by every tracker: the tests of each read it back with that tool's own reader."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from linearpatch.cli import main

TINY = ("run", "debug=tiny", "model=random", "num_pruned_layers=3")


@pytest.fixture
def shared_cache(session_cache, monkeypatch):
    monkeypatch.setenv("LINEARPATCH_CACHE", str(session_cache))


@pytest.fixture(scope="session")
def tracked(tmp_path_factory, session_cache):
    """A run with `tracker=[jsonl,mlflow,wandb]`, of which those that aren't installed are left out."""
    folder = tmp_path_factory.mktemp("tracked") / "D"
    names = [name for name in ("jsonl", "mlflow", "wandb") if name == "jsonl" or importlib.util.find_spec(name)]
    words = [*TINY, "distill=output_kl", f"tracker=[{','.join(names)}]", "group=night", f"output_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEARPATCH_CACHE", str(session_cache))
        patch.chdir(folder.parent)
        assert main(words) == 0
    return SimpleNamespace(folder=folder, words=words, record=json.loads((folder / "result.json").read_text()))
