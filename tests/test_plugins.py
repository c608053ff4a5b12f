"""A component that another installed package defines is chosen by name like any other."""

import os
import subprocess
import sys

import pytest

from linearpatch.errors import ConfigError
from linearpatch.registry import component, components

PLUGIN = '''
from dataclasses import dataclass
from linearpatch.models.edit import Edit
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores

@component("pruner", "every_other")
@dataclass(frozen=True)
class EveryOther(Pruner):
    """Every other layer, from the front."""

    step: int = 2

    def select(self, workspace, n):
        layers = range(1, workspace.num_layers, self.step)
        return Edit.of_layers(layers[:n], scores=LayerScores("position"))
'''


@pytest.fixture
def plugin_environment(tmp_path, session_cache):
    """An environment in which a package with one pruner is installed."""
    site = tmp_path / "site"
    info = site / "other_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "other_package.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[linearpatch.components]\nevery_other = other_package\nbroken = no_such_module\n"
    )
    return {**os.environ, "PYTHONPATH": str(site), "LINEARPATCH_CACHE": str(session_cache)}


def linearpatch(environment, *arguments):
    command = [sys.executable, "-m", "linearpatch.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_is_chosen_configured_and_listed(plugin_environment, tmp_path):
    listed = linearpatch(plugin_environment, "list", "pruner")
    assert "pruner=every_other" in listed.stdout
    assert "Every other layer, from the front." in listed.stdout
    assert "broken (no_such_module) can't be loaded" in listed.stderr

    arguments = ("debug=tiny", "model=random", "tracker=none", "pruner=every_other", "pruner.step=3")
    planned = linearpatch(plugin_environment, "run", *arguments, f"output_dir={tmp_path}/D", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "random-every_other-5-" in planned.stdout  # tests/test_docs.py runs one


def test_a_name_belongs_to_one_class():
    assert "sleb" in components("pruner")
    with pytest.raises(ConfigError, match="pruner=sleb is already"):

        @component("pruner", "sleb")
        class Other:
            pass
