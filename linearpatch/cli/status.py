"""`linearpatch status`: the progress of the runs in a folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from linearpatch.runtime.progress import out

HELP = "the progress of the runs in a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("folder", type=Path, help="the output_dir of a sweep or of a run")
    parser.add_argument("--once", action="store_true", help="print the table and stop, as where there is no terminal")


def execute(arguments: argparse.Namespace) -> int:
    """Show the jobs of a folder until all have ended; return 1 if one didn't complete."""
    folder: Path = arguments.folder
    from rich.live import Live

    from linearpatch.sweep.status import Watch, status_table

    watch = Watch(folder)
    overview = watch.look()
    if arguments.once or not out.is_terminal:
        out.print(status_table(folder, overview.jobs))
    else:
        with Live(status_table(folder, overview.jobs), console=out, refresh_per_second=2) as live:
            while not overview.is_over:
                time.sleep(1)
                overview = watch.look()
                live.update(status_table(folder, overview.jobs))
    for advice in overview.advice:  # unfolded, so that it can be pasted
        out.print(advice, soft_wrap=True, markup=False, highlight=False)
    return 0 if overview.is_complete else 1
