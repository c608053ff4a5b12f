"""The configuration reference, written from what the configuration is: dataclasses, their docstrings, and the YAMLs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from linearpatch.choices import CONF_DIR, choices
from linearpatch.data.reader import DistillationText, EvaluationText
from linearpatch.experiment import Experiment
from linearpatch.registry import GROUPS, components
from linearpatch.sweep.launchers import LAUNCHERS
from linearpatch.sweep.search import SearchSettings

INTRODUCTION = """\
# Configuration reference

Every group, choice and setting, with its type and default. This page is generated from the code and the files of
`conf/`, so it is what your version does. On the command line a choice is `group=name` and a setting is
`group.setting=value`:

```bash
linearpatch run pruner=sleb pruner.protect_last=2 num_pruned_layers=7
linearpatch run --cfg job
```

The second command prints the whole configuration and stops. A setting that doesn't exist, or a value that isn't
possible, is an error before anything is loaded, and the error names what is allowed.
"""

GROUP_TEXTS = {
    "model": "What is pruned. `model=./folder` and `model=owner/name` work, too: they are short for "
    "`model=hub model.path=…`.",
    "corpus": "Where text comes from. `corpus=NAME` sets it for every purpose; `corpus@calibration.corpus=NAME`, "
    "`corpus@distillation.corpus=NAME` and `corpus@evaluation.corpus=NAME` set it for one.",
    "calibration": "The text from which layers are chosen and patches fitted. Besides `default`, the choices are what "
    "the authors of the methods used.",
    "pruner": "Which layers are removed. [Methods](methods.md#pruners) tells what each computes.",
    "budget": "Decides how many layers go, in place of `num_pruned_layers`. See [How far can I go?](how_far.md).",
    "patch": "What repairs the interfaces. [Methods](methods.md#patches) tells what each computes.",
    "distill": "Whether, and by which loss, the patches are trained. See [Distillation](distillation.md).",
    "eval": "What is measured: a list, `'eval=[ppl,smoke]'`. Settings of one are `eval.NAME.setting`. See "
    "[Measuring](measuring.md).",
    "tracker": "Where the record of a run is shown beside its own folder.",
}
HYDRA_TEXTS = {
    "hydra/launcher": "Where the runs of a sweep go. See [Clusters](clusters.md).",
    "hydra/sweeper": "Which runs a sweep has: every combination, or those that a search chooses. See "
    "[Sweeps](sweeps.md#search).",
}
PRESETS = {
    "experiment": "Whole experiments: some set a recipe, others bring the combinations of a sweep (`-m`).",
    "scale": "`scale=small` runs an experiment on the embedded model and text, in minutes on a CPU.",
    "debug": "A trial in seconds, to see that a configuration works.",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key of the configuration.

    Attributes:
        key: Its name.
        type: As annotated in Python.
        default: As written in YAML.
        meaning: From the docstring of its class; empty where that says nothing.
    """

    key: str
    type: str
    default: str
    meaning: str


def configuration_page() -> str:
    """The page as Markdown."""
    return "\n".join(_parts())


def settings(cls: type, values: Mapping[str, Any] | None = None) -> list[Setting]:
    """The settings of a component.

    Args:
        cls: Its dataclass.
        values: What a YAML sets otherwise.
    """
    meanings = _meanings(cls)
    return [
        Setting(field.name, str(field.type), _default(field, values or {}), meanings.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if not field.name.startswith("_")
    ]


def sections() -> Iterator[tuple[str, list[Setting]]]:
    """Every table of settings on the page, with its title."""
    yield "The run", _run_settings()
    yield "evaluation", settings(EvaluationText)
    yield "distillation", settings(DistillationText)
    for group in GROUPS:
        for name, cls in sorted(components(group).items()):
            if cls.__module__.startswith("linearpatch."):
                yield f"{group}: {name}", settings(cls, _yaml(group, name))
    for name in sorted(set(LAUNCHERS) - {"joblib"}):
        yield f"hydra/launcher: {name}", settings(LAUNCHERS[name])
    yield "hydra/sweeper: optuna", settings(SearchSettings)


def _parts() -> Iterator[str]:
    tables = dict(sections())
    yield INTRODUCTION
    yield "## The run\n"
    yield _table(tables["The run"])
    for group, text in GROUP_TEXTS.items():
        yield f"## {group}\n\n{text}\n"
        yield _choices(group)
        for title, rows in tables.items():
            if title.startswith(f"{group}: ") and rows:
                name = title.partition(": ")[2]
                yield f"### {_title(group, name)} {{#{group}-{name}}}\n\n{_first_line(components(group)[name])}\n"
                yield _table(rows)
        if group in ("distill", "eval"):
            section = {"distill": "distillation", "eval": "evaluation"}[group]
            what = {"distill": "that patches are trained on", "eval": "on which models are measured"}[group]
            yield f"### Text: `{section}.…` {{#{section}-text}}\n\nThe text {what}.\n"
            yield _table(tables[section])
    for group, text in HYDRA_TEXTS.items():
        yield f"## {group}\n\n{text}\n"
        yield _choices(group)
        for title, rows in tables.items():
            if title.startswith(f"{group}: "):
                name = title.partition(": ")[2]
                yield f"### `{group}={name}` {{#{group.removeprefix('hydra/')}-{name}}}\n"
                yield _table(rows)
    for group, text in PRESETS.items():
        yield f"## {group}\n\n{text}\n"
        yield _choices(group)


def _run_settings() -> list[Setting]:
    """The keys of the run itself, which aren't components."""
    config = yaml.safe_load((CONF_DIR / "config.yaml").read_text(encoding="utf-8"))
    return [
        setting
        for setting in settings(Experiment, config)
        if setting.key not in (*GROUPS, "evaluation", "distillation", "defaults")
    ]


def _title(group: str, name: str) -> str:
    """A component that is a choice is named as on the command line, a base of several by itself."""
    return f"`{group}={name}`" if (CONF_DIR / group / f"{name}.yaml").exists() else f"Settings of `{name}`"


def _choices(group: str) -> str:
    """The choices of a group: what each is, and what its YAML sets."""
    lines = ["| choice | what it is | sets |", "|---|---|---|"]
    for name, purpose in choices(group).items():
        values = {} if group in PRESETS else _yaml(group, name)
        sets = ", ".join(f"`{key}={_shown(value)}`" for key, value in values.items() if _is_set(key, value))
        lines.append(f"| `{name}` | {_cell(purpose)} | {_cell(sets)} |")
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Setting]) -> str:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{row.key}` | `{_cell(row.type)}` | {_cell(f'`{row.default}`')} | {_cell(row.meaning)} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its attributes."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docstring = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
        if section:
            for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE):
                found[name] = " ".join(text.split())
    return found


def _default(field: dataclasses.Field[Any], values: Mapping[str, Any]) -> str:
    if field.name in values:
        return _shown(values[field.name])
    if field.default_factory is not dataclasses.MISSING:
        return _shown(field.default_factory())
    return _shown(field.default)


def _yaml(group: str, name: str) -> dict[str, Any]:
    """What the YAML of a choice sets."""
    file = CONF_DIR / group / f"{name}.yaml"
    values = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    return {key: value for key, value in values.items() if key not in ("defaults", "_target_")}


def _is_set(key: str, value: Any) -> bool:
    """Whether a choice is known by this value: labels aren't shown, nor nested settings."""
    return key not in ("name", "note") and not isinstance(value, dict)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "":
        return '""'
    if isinstance(value, list | dict):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)).strip()
    return str(value)


def _first_line(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def _cell(text: str) -> str:
    """Text in a cell of a table: no bars, and no tags outside of code."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
