"""All commands and their arguments. Nothing heavy is imported: help, version and completion come at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, cast

from linearpatch.cli import bench, cache, doctor, frontier, generate, report, run, status
from linearpatch.cli import list as list_


class Command(Protocol):
    """What the module of a command holds."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it; return 0 only if all that was asked for was done."""


_MODULES = {
    "run": run,
    "frontier": frontier,
    "status": status,
    "report": report,
    "generate": generate,
    "list": list_,
    "cache": cache,
    "doctor": doctor,
    "bench": bench,
}
COMMANDS: Mapping[str, Command] = {name: cast(Command, module) for name, module in _MODULES.items()}

EPILOG = """\
examples:
  linearpatch run                                       prune the embedded model by the defaults
  linearpatch run pruner=sleb num_pruned_layers=7       override a choice and a value
  linearpatch run model=./folder                        your own model; model=org/name loads from the hub
  linearpatch run -m pruner=sleb,shortgpt patch=none,rotate     every combination
  linearpatch run -m pruner=sleb,shortgpt --dry-run     what a sweep would do
  linearpatch run --cfg job                             print the configuration and stop
  linearpatch run 'eval=[ppl,smoke,speed]'              measure more than perplexity
  linearpatch run save_model=true output_dir=small      write the pruned, patched model to small/model
  linearpatch frontier experiment=recommended           how far to go: every size, with a recommendation
  linearpatch status outputs/compare                    the progress of a sweep
  linearpatch report outputs                            tables, figures and a page that compare its runs
  linearpatch generate small "The sea is"               continue a text with it
  linearpatch list pruner                               every pruner with a line about it

completion of commands, choices and settings in bash (zsh: after autoload -U bashcompinit && bashcompinit):
  eval "$(register-python-argcomplete linearpatch)"
"""


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands.

    `run` parses its words once more by itself, since it takes flags and overrides in any order.
    """
    parser = argparse.ArgumentParser(
        prog="linearpatch",
        description="Remove layers from a language model, patch the interface, measure what is left.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"linearpatch {package_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, add_help=name != "run"))
    return parser


def package_version() -> str:
    """Of this package, where it is installed."""
    try:
        return version("linearpatch")
    except PackageNotFoundError:
        return "(not installed)"
