"""`linearpatch list`: every choice of a group with a line about it."""

from __future__ import annotations

import argparse

from rich.markup import escape
from rich.table import Table

from linearpatch.choices import PRESET_GROUPS, choices
from linearpatch.cli.completion import complete_group
from linearpatch.errors import ConfigError, suggest
from linearpatch.registry import GROUPS
from linearpatch.runtime.progress import out

HELP = "every choice of a group, or of all groups"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument("group", nargs="?", help="such as pruner")
    group.completer = complete_group  # type: ignore[attr-defined]


def execute(arguments: argparse.Namespace) -> int:
    """Print the choices of one group or of all."""
    group: str | None = arguments.group
    groups = [*GROUPS, *PRESET_GROUPS]
    if group is not None and group not in groups:
        raise ConfigError(f"{group!r} is not a group. {suggest(group, groups)}")
    for name in [group] if group else groups:
        table = Table(title=name, title_justify="left", show_header=False, box=None, pad_edge=False)
        for choice, description in choices(name).items():
            table.add_row(f"  {name}={choice}", escape(description))
        out.print(table)
        out.print()
    return 0
