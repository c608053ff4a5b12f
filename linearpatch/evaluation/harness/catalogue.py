"""From names of tasks, groups and tags to the tasks that lm_eval has under them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

from linearpatch.errors import ConfigError

TASKS = Path(lm_eval.tasks.__file__).parent
OWN_TASKS = Path(__file__).parents[1] / "smoke"


@dataclass(frozen=True)
class Entry:
    """One task, not loaded yet.

    Attributes:
        name: Its name.
        config: Its configuration, functions as names.
        changes: What the groups through which it was asked for change in that.
    """

    name: str
    config: Mapping[str, Any]
    changes: Mapping[str, Any]
    _manager: TaskManager = field(repr=False)

    def load(self, changes: Mapping[str, Any]) -> Any:
        """Make lm_eval's task, with some more changes to its configuration; reads its data."""
        member = {"task": self.name, **self.changes, **changes}
        loaded = self._manager.load({"group": "one", "task": [member]})["tasks"]
        return next(iter(loaded.values()))


@dataclass(frozen=True)
class Selection:
    """The tasks behind some names.

    Attributes:
        entries: Every task once, in order.
        asked: The names asked for; tags are replaced by their tasks.
        groups: Names of the tasks in each group, nested groups included.
    """

    entries: Sequence[Entry]
    asked: Sequence[str]
    groups: Mapping[str, Sequence[str]]


@cache
def select(names: tuple[str, ...], include_path: Path | None = None) -> Selection:
    """Find tasks by name.

    lm_eval's index of some 14,000 tasks takes seconds to build: only the folder that a name points to is indexed,
    and all of them where that doesn't hold the name.

    Args:
        names: Of tasks, groups and tags.
        include_path: A folder with more tasks, which come first.

    Raises:
        ConfigError: a name is unknown.
    """
    entries: dict[str, Entry] = {}
    groups: dict[str, list[str]] = {}
    asked: list[str] = []
    for name in names:
        manager = _manager_of(name, include_path)
        tasks, own_groups = _expand(name, manager)
        entries |= {entry.name: entry for entry in tasks if entry.name not in entries}
        groups |= own_groups
        asked += [name] if _kind(name, manager) != "TAG" else [entry.name for entry in tasks]
    return Selection(tuple(entries.values()), tuple(dict.fromkeys(asked)), groups)


def _manager_of(name: str, include_path: Path | None) -> TaskManager:
    """An index that knows a name and all it stands for."""
    for folder in _folders(name, include_path):
        manager = _index(folder)
        if name in manager.task_index and not _unknown(name, manager):
            return manager
    manager = _full_index(include_path)
    if name not in manager.task_index:
        _check_syntax(include_path)
        near = get_close_matches(name, manager.all_tasks, n=5)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        where = f" and in {include_path}" if include_path else ""
        raise ConfigError(
            f"{name!r} is not a task, group or tag of lm_eval {lm_eval.__version__} (looked among its "
            f"{len(manager.all_tasks):,}{where}). {hint}`lm_eval ls tasks` prints all of them; tasks of your own need "
            "include_path=FOLDER."
        )
    return manager


def _check_syntax(folder: Path | None) -> None:
    """Reject a folder with YAML that can't be read; lm_eval's index leaves it out without a word."""
    for file in folder.rglob("*.yaml") if folder else ():
        try:
            yaml.compose(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{file} can't be read as YAML: {' '.join(str(error).split())}.") from error


def _folders(name: str, include_path: Path | None) -> Iterator[Path]:
    """Folders that may define a name, the likeliest first."""
    if include_path is not None:
        yield include_path
    yield OWN_TASKS
    files = sorted(_files(), key=lambda file: (len(file.parts), file))
    folders = [file.parent for file in files if name in (file.stem, file.stem.removeprefix("_"), file.parent.name)]
    yield from dict.fromkeys(folders)


@cache
def _files() -> list[Path]:
    return list(TASKS.rglob("*.yaml"))


@cache
def _index(folder: Path) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=False)


@cache
def _full_index(include_path: Path | None) -> TaskManager:
    return TaskManager(include_path=[OWN_TASKS, *([include_path] if include_path else [])])


def _kind(name: str, manager: TaskManager) -> str:
    kind: str = manager.task_index[name].kind.name
    return kind


def _members(name: str, manager: TaskManager) -> list[tuple[str, dict[str, Any]]]:
    """Direct members of a group or tag, with what it changes in each."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return [(member, {}) for member in sorted(entry.tags)]
    members: list[tuple[str, dict[str, Any]]] = []
    for item in (entry.cfg or {}).get("task") or []:
        if isinstance(item, str):
            members.append((item, {}))
        else:
            changes = {key: value for key, value in item.items() if key not in ("task", "group")}
            members.append((item.get("task", item.get("group")), changes))
    return members


def _unknown(name: str, manager: TaskManager) -> list[str]:
    """Names below a name that an index doesn't have."""
    if name not in manager.task_index:
        return [name]
    if _kind(name, manager) not in ("GROUP", "TAG"):
        return []
    return [missing for member, _ in _members(name, manager) for missing in _unknown(member, manager)]


def _expand(
    name: str, manager: TaskManager, changes: Mapping[str, Any] | None = None
) -> tuple[list[Entry], dict[str, list[str]]]:
    """The tasks under a name, and the groups on the way."""
    if name not in manager.task_index:
        raise ConfigError(f"The task {name!r}, which a group names, is unknown. Define it beside the group.")
    if _kind(name, manager) not in ("GROUP", "TAG"):
        return [Entry(name, manager.task_index[name].cfg or {}, changes or {}, manager)], {}
    entries: list[Entry] = []
    groups: dict[str, list[str]] = {}
    for member, own in _members(name, manager):
        tasks, below = _expand(member, manager, {**(changes or {}), **own})
        entries += tasks
        groups |= below
    if _kind(name, manager) == "GROUP":
        groups = {name: [entry.name for entry in entries], **groups}
    return entries, groups
