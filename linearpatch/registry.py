"""Components by name: which class stands behind `pruner=sleb`, `patch=rotate` and their like.

A component is a frozen dataclass: its fields are the settings of its YAML, `__post_init__` checks them,
its methods do the work. Decorating the class is all it takes:

    @component("pruner", "sleb")
    @dataclass(frozen=True)
    class Sleb(Pruner): ...

Other packages register theirs by naming the defining module in the entry point group
`linearpatch.components`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from linearpatch.errors import ConfigError, require_choice, suggest

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "linearpatch.components"

# Each group of the configuration and the package whose files define its built-in components.
GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "model": "linearpatch.models",
        "corpus": "linearpatch.data",
        "calibration": "linearpatch.data",
        "pruner": "linearpatch.pruners",
        "budget": "linearpatch.budgets",
        "patch": "linearpatch.patches",
        "distill": "linearpatch.distillation",
        "eval": "linearpatch.evaluation",
        "tracker": "linearpatch.tracking",
    }
)

# Groups of which a run takes any number; settings of each choice are below its name, such as `eval.ppl.seq_len`.
LIST_GROUPS = ("eval", "tracker")

T = TypeVar("T", bound=type)
C = TypeVar("C")

_components: dict[str, dict[str, type]] = {group: {} for group in GROUPS}
_titles: dict[tuple[str, str], str] = {}


def component(group: str, name: str, *, title: str = "") -> Callable[[T], T]:
    """Make the decorated frozen dataclass the choice `name` of `group`.

    Args:
        group: Of the configuration.
        name: What configurations call it.
        title: What figures and reports call it; empty: its name.

    Raises:
        ConfigError: the group is unknown, or another class holds the name.
    """
    require_choice("component group", group, GROUPS)

    def add(cls: T) -> T:
        holder = _components[group].setdefault(name, cls)
        if holder.__qualname__ != cls.__qualname__ or holder.__module__ != cls.__module__:
            raise ConfigError(
                f"{group}={name} is already {holder.__module__}.{holder.__qualname__}; "
                f"{cls.__module__}.{cls.__qualname__} needs another name."
            )
        _titles[group, name] = title or name
        return cls

    return add


def title_of(group: str, name: str) -> str:
    """What reports call a choice; its name where it has no title, or isn't installed here."""
    _load_all()
    return _titles.get((group, name), name)


def components(group: str) -> Mapping[str, type]:
    """All registered components of a group, by name, plug-ins included."""
    _load_all()
    require_choice("component group", group, GROUPS)
    return MappingProxyType(_components[group])


def class_named(group: str, name: str) -> type:
    """The component class of that name, for the package that its group's classes are attributes of.

    Raises:
        AttributeError: there is none.
    """
    classes = {} if name.startswith("_") else {cls.__name__: cls for cls in components(group).values()}
    if name not in classes:
        hint = f" {suggest(name, classes)}" if classes else ""
        raise AttributeError(f"module {GROUPS[group]!r} has no attribute {name!r}.{hint}")
    return classes[name]


@cache
def declared(group: str) -> Mapping[str, str]:
    """All components of a group with the first lines of their docstrings.

    Ours are read from the source, because importing them imports PyTorch and more; plug-ins are imported.
    """
    require_choice("component group", group, GROUPS)
    _load_plugins()
    found = {name: _first_line(cls.__doc__) for name, cls in _components[group].items()}
    folder = Path(__file__).parents[1].joinpath(*GROUPS[group].split("."))
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f'@component("{group}"' in text:
            found |= _declared_in(ast.parse(text), group)
    return MappingProxyType(found)


def _declared_in(tree: ast.Module, group: str) -> dict[str, str]:
    """The classes of a module that `@component(group, name)` decorates."""
    found: dict[str, str] = {}
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(ast.Name("component"), [ast.Constant(str(of)), ast.Constant(str(name))]) if of == group:
                    found[name] = _first_line(ast.get_docstring(node))
    return found


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]


def setting_names(group: str, name: str) -> list[str]:
    """Names of the settings of a component.

    Raises:
        ConfigError: there is no such component.
    """
    if name not in components(group):
        raise ConfigError(f"{group} is {name!r}. {suggest(name, components(group))}")
    return [setting.name for setting in dataclasses.fields(components(group)[name])]


def resolve(group: str, choice: str | C, kind: type[C], settings: Mapping[str, Any]) -> C:
    """A component from its name and settings, or one that is given already, with settings changed.

    Raises:
        ConfigError: there is no such component or setting, or it is of another group.
    """
    if isinstance(choice, str):
        allowed = setting_names(group, choice)
        for setting in settings:
            if setting not in allowed:
                raise ConfigError(f"{group}={choice} has no setting {setting!r}. {suggest(setting, allowed)}")
        made = _made(f"{group}={choice}", components(group)[choice], settings)
    elif isinstance(choice, kind):
        allowed = [setting.name for setting in dataclasses.fields(cast(Any, choice))]
        if unknown := set(settings) - set(allowed):
            raise ConfigError(f"{name_of(choice)} has no setting {min(unknown)!r}. {suggest(min(unknown), allowed)}")
        made = dataclasses.replace(cast(Any, choice), **settings)
    elif isinstance(choice, type):
        raise ConfigError(f"{group} is the class {choice.__name__}. Create a component of it: {choice.__name__}().")
    else:
        raise ConfigError(
            f"{group} is a {type(choice).__name__}. Allowed: a name such as {min(components(group))!r}, or a component "
            f"of that group ({kind.__name__})."
        )
    if not isinstance(made, kind):
        allowed = [name for name, cls in components(group).items() if issubclass(cls, kind)]
        raise ConfigError(f"{group}={choice} does nothing here. {suggest(str(choice), allowed)}")
    return made


def _made(what: str, cls: Any, settings: Mapping[str, Any]) -> Any:
    """A component of settings of the right types.

    Raises:
        ConfigError: a value has another type, or the component rejects it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(own := first.get("ctx", {}).get("error"), ConfigError):  # it is a ValueError, too
            raise own from error
        setting = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{what}: {setting} is {first['input']!r}. {first['msg']}.") from error


def name_of(instance: object) -> str:
    """The name under which the class of `instance` was registered; of a wrapper, that of what it wraps."""
    cls = type(getattr(instance, "wraps", instance))
    choice = choice_of(cls)
    return choice[1] if choice else cls.__name__.lower()


def choice_of(cls: object) -> tuple[str, str] | None:
    """The group and the name under which a class was registered; None where it wasn't."""
    for group, choices in _components.items():
        for name, registered in choices.items():
            if cls is registered:
                return group, name
    return None


def identity(instance: Any) -> dict[str, Any]:
    """What makes a component's result: its name, its settings and its algorithm's version.

    Fields marked `metadata={"identity": False}` (labels, paths, batch sizes) don't take part; those marked `"changed"`
    do where they have another value than their default, so that a new setting leaves names of runs as they were.
    """
    settings = {
        field.name: value
        for field in dataclasses.fields(instance)
        for value in [getattr(instance, field.name)]
        if (kind := field.metadata.get("identity", True)) and not (kind == "changed" and value == field.default)
    }
    nested = {key: identity(value) if dataclasses.is_dataclass(value) else value for key, value in settings.items()}
    return {"name": name_of(instance), "version": getattr(instance, "version", 1), **nested}


@cache
def _load_all() -> None:
    """Import every module that may register a component."""
    for package_name in dict.fromkeys(GROUPS.values()):
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{package_name}."):
            importlib.import_module(module.name)
    _load_plugins()


@cache
def _load_plugins() -> None:
    """Import the components of other packages. A broken plug-in is reported and left out."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:
            log.warning("plug-in %s (%s) can't be loaded: %s", entry_point.name, entry_point.value, error)
