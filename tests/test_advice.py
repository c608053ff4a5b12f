"""The advice in an error works when it is followed: every setting that is named exists, and takes the value named."""

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import linearpatch
from linearpatch.config import PRESET_GROUPS, compose_experiment
from linearpatch.errors import ConfigError
from linearpatch.experiment import Experiment
from linearpatch.registry import GROUPS, LIST_GROUPS, components

ROOT = Path(linearpatch.__file__).parent
MENTION = re.compile(r"(?<![\w.@/{}-])((?:[a-z_]|\{\})(?:[\w./@]|\{\})*)=([\w\[\],./~-]+|\{\}|…)?")
ADVICE = re.compile(r"\b(Use|Set|set|Ask|Allowed|allowed|Choose|choose|Lower|Add|add|Leave|leave|needs|Keep|or use)\b")
# Words before an equals sign that are no settings of a run.
OTHERS = {
    "sweep", "key", "group", "hydra/launcher", "hydra.sweeper.file",
    "s",  # of a %s
}  # fmt: skip


def texts_of(tree: ast.AST) -> list[tuple[int, str]]:
    """Texts of a module that aren't docstrings, with {} where values go; those of one expression are one text."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            found.append((node.lineno, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            found.append((node.lineno, node.value))
    return found


def mentions() -> dict[tuple[str, str], str]:
    """Every `key=value` in a text that advises, with where it stands."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        if "bench" in file.parts:
            continue
        for line, text in texts_of(ast.parse(file.read_text(encoding="utf-8"))):
            if ADVICE.search(text):
                for key, value in MENTION.findall(text):
                    found.setdefault((key.rstrip("."), value.rstrip(".,")), f"{file.relative_to(ROOT)}:{line}: {text}")
    return found


def settings() -> dict[str, list[str]]:
    """Every key of the configuration, with the choices under which it exists."""
    found: dict[str, list[str]] = {one.name: [] for one in fields(Experiment)}
    for group in GROUPS:
        for name, cls in components(group).items():
            choice = [f"{group}=[{name}]"] if group in LIST_GROUPS else [f"{group}={name}"]
            prefixes = [f"{group}.{name}" if group in LIST_GROUPS else group]
            if group == "corpus":
                prefixes += ["calibration.corpus", "distillation.corpus", "evaluation.corpus"]
            for prefix in prefixes:
                for one in fields(cls):
                    found.setdefault(f"{prefix}.{one.name}", choice)
    for owner in ("evaluation", "distillation"):
        cls = type(next(one.default_factory() for one in fields(Experiment) if one.name == owner))
        assert is_dataclass(cls)
        found |= {f"{owner}.{one.name}": [] for one in fields(cls)}
    return found | {"gguf_type": ["save_format=gguf"]}


SETTINGS = settings()
MENTIONS = mentions()


def matches(key: str) -> list[str]:
    """Settings that a key means, with anything for what is filled in."""
    groups = [*GROUPS, *PRESET_GROUPS]
    if key in groups or key in OTHERS or re.fullmatch(rf"({'|'.join(GROUPS)})@[\w.{{}}]+", key):
        return [key]
    if key.startswith("corpus.parts.NAME."):  # parts have names of the user's own
        return [key]
    pattern = re.compile("".join(r"[\w.]+" if part == "{}" else re.escape(part) for part in re.split(r"(\{\})", key)))
    return [name for name in (*SETTINGS, *groups) if pattern.fullmatch(name)]


def test_there_is_advice_to_check():
    assert len(MENTIONS) > 50
    assert ("patch.ridge", "auto") in MENTIONS


@pytest.mark.parametrize("key", sorted({key for key, _ in MENTIONS}))
def test_a_setting_that_advice_names_exists_under_its_full_name(key):
    where = next(place for (name, _), place in MENTIONS.items() if name == key)
    assert matches(key), f"{key} is no setting ({where})"


def plain() -> list[tuple[str, str]]:
    """Advice with a value that can be typed as it stands."""
    return sorted(
        (key, value)
        for key, value in MENTIONS
        if key in SETTINGS and re.fullmatch(r"[a-z0-9_.\[\],]+", value) and not value.startswith("cuda")
    )


@pytest.mark.parametrize(("key", "value"), plain())
def test_advice_composes(key, value):
    wrong = rf"doesn't exist|is not a choice|{re.escape(key)} is '?{re.escape(value)}"
    assert not re.search(wrong, error_of([*SETTINGS[key], f"{key}={value}"]))


def error_of(overrides: list[str]) -> str:
    """Why a configuration is rejected; a setting may need others beside it, which the advice is given with."""
    try:
        compose_experiment(overrides)
    except ConfigError as error:
        return str(error)
    return ""
