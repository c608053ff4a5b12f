"""The command line: `linearpatch run | list | bench`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from linearpatch.errors import ConfigError, LinearPatchError, suggest
from linearpatch.progress import WIDTH_OF_FILES, console

log = logging.getLogger("linearpatch")
out = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)

EPILOG = """\
examples:
  linearpatch run                                       prune the embedded model by the defaults
  linearpatch run pruner=sleb num_pruned_layers=7       override a choice and a value
  linearpatch run -m pruner=sleb,shortgpt patch=none,rotate     every combination
  linearpatch run --cfg job                             print the configuration and stop
  linearpatch list pruner                               every pruner with a line about it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 only if all it was asked for was done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="linearpatch",
        description="Remove layers from a language model, patch the gap, measure what is left.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="one experiment, or with -m a sweep; the rest are Hydra overrides", add_help=False)
    listing = commands.add_parser("list", help="every choice of a group, or of all groups")
    listing.add_argument("group", nargs="?", help="such as pruner")
    benching = commands.add_parser("bench", help="measure a claim about speed or memory")
    benching.add_argument("name", help="name of the benchmark, or all")
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "run":
        parser.error(f"unknown arguments: {' '.join(rest)}")

    command: Callable[[], int] = {
        "run": lambda: _run(arguments[1:]),
        "list": lambda: _list(parsed.group),
        "bench": lambda: _bench(parsed.name),
    }[parsed.command]
    _set_up_logging()
    try:
        return command()
    except KeyboardInterrupt:
        log.error("Interrupted. What was computed is in the cache; run the same command to go on.")
    except LinearPatchError as error:
        log.error("%s", error)
    return 1


def _run(arguments: list[str]) -> int:
    """Compose with Hydra, run each job, print the table."""
    import hydra

    from linearpatch.config import CONF_DIR, readable_errors, register_schemas
    from linearpatch.jobs import Jobs
    from linearpatch.results.tables import comparison_table, failures_table, run_table

    register_schemas()
    jobs = Jobs()
    # Hydra would print a bad override in its own way and exit; with this it raises, and we say it in a sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    previous, sys.argv = sys.argv, ["linearpatch run", *arguments]
    try:
        with readable_errors():
            hydra.main(config_path=str(CONF_DIR.resolve()), config_name="config", version_base="1.3")(jobs)()
    finally:
        sys.argv = previous

    if not jobs.records:  # --help, --cfg and --info print and stop
        return 0
    if not jobs.in_sweep:
        if jobs.errors:
            raise jobs.errors[0]
        out.print(run_table(jobs.records[0]))
        out.print(f"{jobs.folder}/result.json", soft_wrap=True)
        return 0
    out.print(comparison_table(jobs.records))
    out.print(f"{jobs.folder.parent}/*/result.json", soft_wrap=True)
    if failures := failures_table(jobs.records):
        out.print(failures)
    return 1 if failures else 0


def _list(group: str | None) -> int:
    """Print the choices of one group or of all."""
    from linearpatch.config import PRESET_GROUPS, choices
    from linearpatch.registry import GROUPS

    groups = [*GROUPS, *PRESET_GROUPS]
    if group is not None and group not in groups:
        raise ConfigError(f"{group!r} is not a group. {suggest(group, groups)}")
    for name in [group] if group else groups:
        table = Table(title=name, title_justify="left", show_header=False, box=None, pad_edge=False)
        for choice, description in choices(name).items():
            table.add_row(f"  {name}={choice}", description)
        out.print(table)
        out.print()
    return 0


def _bench(name: str) -> int:
    """Run one benchmark, or all, and print measured against allowed."""
    from linearpatch.bench import BENCHMARKS
    from linearpatch.bench.measure import claims_table

    if name != "all" and name not in BENCHMARKS:
        raise ConfigError(f"{name!r} is not a benchmark. {suggest(name, [*BENCHMARKS, 'all'])}")
    for chosen in BENCHMARKS if name == "all" else [name]:
        out.print(claims_table(chosen, BENCHMARKS[chosen]()))
    return 0


def _set_up_logging() -> None:
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
