"""`linearpatch cache`: list, remove or check what is kept between runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from linearpatch.errors import ConfigError, require_range
from linearpatch.runtime.progress import out, steps
from linearpatch.text import counted

if TYPE_CHECKING:
    from linearpatch.storage.administration import Kept

HELP = "list, clean or check the cache"
MOST_SHOWN = 10  # of damaged entries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("action", choices=("ls", "rm", "verify"), help="list it, remove some of it, find damage")
    parser.add_argument("kind", nargs="?", help="for rm: a kind that ls lists, or all")
    parser.add_argument("--older-than", type=float, default=0, metavar="DAYS", help="for rm: only such entries")
    parser.add_argument("--yes", action="store_true", help="for rm: don't ask whether to remove what is listed")
    parser.add_argument("--dir", type=Path, help="the cache; by default LINEARPATCH_CACHE or the user's")


def execute(arguments: argparse.Namespace) -> int:
    """List, remove or check."""
    from linearpatch.storage.cache import default_cache_dir

    require_range("--older-than", arguments.older_than, low=0)
    root: Path = arguments.dir or default_cache_dir()
    if arguments.action == "rm":
        return _remove(root, arguments)
    if arguments.action == "verify":
        return _verify(root)
    from linearpatch.storage.administration import contents

    out.print(_kept_table(str(root), contents(root)))
    return 0


def _remove(root: Path, arguments: argparse.Namespace) -> int:
    from linearpatch.storage.administration import removable, remove
    from linearpatch.storage.leftovers import remove_dead_leases

    if arguments.kind is None:
        raise ConfigError("What is to be removed? Name a kind that `linearpatch cache ls` lists, or all.")
    chosen = removable(root, arguments.kind, older_than_s=arguments.older_than * 86_400)
    if not chosen:
        out.print(f"Nothing to remove from {root}.", soft_wrap=True, markup=False)
        return 0
    out.print(_kept_table(f"to be removed from {root}", chosen))
    if not arguments.yes and not _confirmed("Remove these entries?"):
        out.print("Nothing was removed.")
        return 1
    count, size = remove(chosen)
    remove_dead_leases(root)
    out.print(f"removed {counted(count, 'entry')}, {size / 2**20:,.1f} MiB")
    return 0


def _verify(root: Path) -> int:
    from linearpatch.storage.administration import damaged, entries_to_check, half_written

    with steps("entries", len(entries_to_check(root))) as on_step:
        damaged_entries = damaged(root, on_step)
    for path, reason in damaged_entries[:MOST_SHOWN]:
        out.print(f"{path}: {reason}", soft_wrap=True, markup=False)
    if len(damaged_entries) > MOST_SHOWN:
        out.print(f"… and {len(damaged_entries) - MOST_SHOWN} more")
    checked = counted(len(entries_to_check(root)), "entry")
    out.print(f"{checked}, {len(damaged_entries)} damaged; those are recomputed when needed")
    if left := [file for file in half_written(root) if file.is_leftover]:
        what, mib = counted(len(left), "temporary file"), sum(file.size for file in left) / 2**20
        out.print(f"{what} of killed processes, {mib:,.1f} MiB; `linearpatch cache rm temporary` removes them")
    return 1 if damaged_entries else 0


def _kept_table(title: str, entries: Sequence[Kept]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("kind")
    for column in ("entries", "MiB", "oldest", "newest"):
        table.add_column(column, justify="right")
    for kept in entries:
        days = [time.strftime("%Y-%m-%d", time.localtime(stamp)) for stamp in (kept.oldest, kept.newest)]
        table.add_row(escape(kept.kind), f"{kept.count:,}", f"{kept.size / 2**20:,.1f}", *days)
    return table


def _confirmed(question: str) -> bool:
    """Ask a yes-or-no question; no answer means no.

    Raises:
        ConfigError: there is no terminal to ask on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("Nothing was removed: there is no terminal to confirm it on. Add --yes.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
