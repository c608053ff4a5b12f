"""`linearpatch frontier`: every size of one or several recipes, and how far to go."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from linearpatch.choices import check_names
from linearpatch.cli.completion import complete_override
from linearpatch.errors import ConfigError, require_range
from linearpatch.runtime.progress import out

HELP = "how far a model can be pruned: every size from one pass, with a recommendation"

LARGEST = 2_000  # layers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    overrides = parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="overrides as for `linearpatch run`; a key with several values makes a recipe of each",
    )
    overrides.completer = complete_override  # type: ignore[attr-defined]
    parser.add_argument(
        "--sizes", metavar="1-9", help="numbers of layers to remove: 1-9, or 3,5,7; up to a third of them by default"
    )
    parser.add_argument(
        "--within", type=float, default=0.1, metavar="LOSS",
        help="recommend layers up to this loss: 0.1 is 10 %% more perplexity or less accuracy",
    )  # fmt: skip
    parser.add_argument("--metric", metavar="NAME", help="metric to compare, such as ppl/wikitext2 (first measured)")
    parser.add_argument("--config-dir", metavar="FOLDER", help="folder with configuration files of your own")


def execute(arguments: argparse.Namespace) -> int:
    """Run all sizes, print the table, write the figure; return 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="linearpatch frontier")
    add_arguments(parser)
    given = parser.parse_intermixed_args(arguments.words)
    sizes = sizes_from(given.sizes)
    require_range("--within", given.within, low=0)
    check_names(given.overrides, given.config_dir)

    # Imported late: a wrong name is reported in a second, and what follows imports PyTorch.
    from linearpatch.config import register_schemas
    from linearpatch.frontiers.frontier import Frontier
    from linearpatch.frontiers.running import run_frontier
    from linearpatch.overrides import command
    from linearpatch.report.terminal import rich_table
    from linearpatch.runtime.signals import terminable

    register_schemas()
    search_path = [str(Path(given.config_dir).resolve())] if given.config_dir else []
    with terminable():
        runs = run_frontier(given.overrides, sizes, search_path=search_path, typed=command(arguments.words, "frontier"))
    for name, error in runs.failed.items():
        out.print(f"{name}: {error}", soft_wrap=True, markup=False)
    if runs.done:
        frontier = Frontier.of(runs, metric=given.metric, bound=given.within)
        files = frontier.write()
        out.print(rich_table(frontier.table()))
        out.print(", ".join(map(str, files)), soft_wrap=True)
    return 1 if runs.failed else 0


def sizes_from(text: str | None) -> Sequence[int] | None:
    """Numbers of layers from `1-9` or `3,5,7`.

    >>> sizes_from("1-3,7")
    [1, 2, 3, 7]

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    sizes: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= LARGEST:
            raise ConfigError(f"--sizes is {text!r}. Allowed: numbers of layers and ranges, such as 1-9 or 3,5,7.")
        sizes |= set(range(low, high + 1))
    return sorted(sizes)
