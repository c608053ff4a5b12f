"""The template of a package with a component: its own tests pass where it is installed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "examples" / "component-template"


def installed(folder, session_cache):
    """An environment in which the template is installed, without pip."""
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    lines = "\n".join(f"{name} = {module}" for name, module in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    paths = os.pathsep.join(map(str, (folder, TEMPLATE, ROOT)))
    return {**os.environ, "PYTHONPATH": paths, "LINEARPATCH_CACHE": str(session_cache)}


@pytest.mark.slow
def test_its_own_tests_pass(tmp_path, session_cache):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE)]
    done = subprocess.run(
        command, env=installed(tmp_path / "site", session_cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b3 passed", done.stdout)
