"""`linearpatch bench`: measure the claims about speed and memory, in a clone of the repository."""

from __future__ import annotations

import argparse
from types import ModuleType

from linearpatch.errors import ConfigError, suggest
from linearpatch.runtime.progress import out

HELP = "measure a claim about speed or memory (in a clone of the repository)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    benchmarks = _benchmarks()
    text, names = "a file of benchmarks/ in the repository", []
    if benchmarks:
        text = f"{', '.join(benchmarks.BENCHMARKS)}, or all of these; {', '.join(benchmarks.LARGE)} only by name"
        names = [*benchmarks.BENCHMARKS, *benchmarks.LARGE, "all"]
    name = parser.add_argument("name", help=text)
    name.completer = lambda **_: names  # type: ignore[attr-defined]


def execute(arguments: argparse.Namespace) -> int:
    """Run one benchmark, or all, and print measured against allowed."""
    benchmarks, name = _benchmarks(), arguments.name
    if benchmarks is None:
        raise ConfigError(
            "The benchmarks are in the repository, not in the installed package. Clone it, and run there: make bench"
        )
    known = (*benchmarks.BENCHMARKS, *benchmarks.LARGE)
    if name != "all" and name not in known:
        raise ConfigError(f"{name!r} is not a benchmark. {suggest(name, [*known, 'all'])}")
    from benchmarks.measure import claims_table

    for chosen in benchmarks.BENCHMARKS if name == "all" else [name]:
        out.print(claims_table(chosen, benchmarks.claims_of(chosen)))
    return 0


def _benchmarks() -> ModuleType | None:
    """The repository's package of benchmarks; None where only the library is installed."""
    try:
        import benchmarks
    except ImportError:
        return None
    return benchmarks if hasattr(benchmarks, "claims_of") else None
