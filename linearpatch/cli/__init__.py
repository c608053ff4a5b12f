# PYTHON_ARGCOMPLETE_OK
"""The command line: one file for each command of `linearpatch`.

A command has `HELP`, `add_arguments(parser)` and `execute(arguments)`, which returns the exit status. What a command
needs is imported when it is executed, so that help, completion and errors take no time.
"""

from linearpatch.cli.entry import main

__all__ = ["main"]
