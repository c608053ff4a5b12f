"""`linearpatch doctor`: what this machine has and lacks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from linearpatch.runtime.progress import out

HELP = "what this machine has and lacks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def execute(arguments: argparse.Namespace) -> int:
    """Look the machine over; return 1 if something would stop runs."""
    from linearpatch.cli.machine import examine, findings_table

    datasets_dir = os.environ.get("LINEARPATCH_DATASETS")
    findings = examine(Path(datasets_dir) if datasets_dir else None)
    out.print(findings_table(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0
