import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import linearpatch

MODULES = [module.name for module in pkgutil.walk_packages(linearpatch.__path__, "linearpatch.")]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "linearpatch.__main__"])
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("group", ["pruners", "patches"])
def test_components_do_not_import_their_siblings(group):
    """Each file imports bases, helpers and the registry, never another component's file."""
    import ast

    package = importlib.import_module(f"linearpatch.{group}")
    sources = {
        module.name: Path(importlib.import_module(f"linearpatch.{group}.{module.name}").__file__).read_text()
        for module in pkgutil.iter_modules(package.__path__)
    }
    shared = {name for name, source in sources.items() if "@component(" not in source}
    for source in sources.values():
        imports = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
        siblings = {name.split(".")[2] for name in imports if name and name.startswith(f"linearpatch.{group}.")}
        assert siblings <= shared
