"""The entry of the command line: parse, execute, turn every error into one sentence and an exit status."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from rich.logging import RichHandler

from linearpatch.cli.parser import COMMANDS, command_parser
from linearpatch.errors import LinearPatchError, require_path
from linearpatch.runtime.console import PlainFormatter
from linearpatch.runtime.progress import console

log = logging.getLogger("linearpatch")

MAX_REASON = 300  # characters of an unexpected error


def main(argv: Sequence[str] | None = None) -> int:
    """Execute a command; return 0 only if all it was asked for was done."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what a word may be
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)
    arguments, rest = parser.parse_known_args(words)
    if rest and arguments.command not in ("run", "frontier"):  # which take options and overrides in any order
        parser.error(f"unknown arguments: {' '.join(rest)}")
    arguments.words = words[1:]
    _set_up_logging()
    try:
        _check_paths(arguments)
        return COMMANDS[arguments.command].execute(arguments)
    except KeyboardInterrupt as error:
        why = f"Interrupted: {error}" if str(error) else "Interrupted"
        log.error("%s. What a run computed is in the cache; the same command resumes it.", why)
    except BrokenPipeError:  # the reader of our output has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except LinearPatchError as error:
        log.error("%s", error)
    except Exception as error:  # the last resort: a bug of ours, or a library's error that nobody expected
        log.error("%s", unexpected(error))
    return 1


def unexpected(error: Exception) -> str:
    """One sentence about an error that has none of its own; its traceback goes to a file."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("The traceback is in ")]
    if not notes:
        with tempfile.NamedTemporaryFile("w", prefix="linearpatch-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
        notes = [f"The traceback is in {file.name}."]
    reason = " ".join(str(error).split())[:MAX_REASON] or "no reason given"
    return f"Unexpected error, {type(error).__name__}: {reason.rstrip('.')}. {notes[0]}"


def _check_paths(arguments: argparse.Namespace) -> None:
    """Reject names that no file or folder can have."""
    for name in ("folder", "folders", "output", "published", "dir", "base"):
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                require_path(name, str(value))


def _set_up_logging() -> None:
    """Colours and bars in a terminal; whole lines in a file, where bars of other libraries would be thousands more."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
        for variable in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(variable, "1")
    # It says on import that an optional kernel of 4-bit models isn't installed, also where there is no such model.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
