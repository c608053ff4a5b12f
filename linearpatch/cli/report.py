"""`linearpatch report`: tables, figures and a page that compare runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from linearpatch.report import FACETS
from linearpatch.runtime.progress import out
from linearpatch.text import counted

HELP = "compare runs: tables, figures, an interactive page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run, or a folder with runs below it")
    parser.add_argument("--output", type=Path, help="folder for the report (default: report/ in the first DIR)")
    parser.add_argument("--title", help="title of the report (default: the names of the models)")
    parser.add_argument("--published", type=Path, metavar="CSV", help="published numbers to compare with measured ones")
    parser.add_argument(
        "--facet",
        choices=FACETS,
        help="draw quality against layers in panels, one for each of these; by default all recipes share an axis",
    )
    parser.add_argument("--wandb", action="store_true", help="put the same comparison on Weights & Biases as well")


def execute(arguments: argparse.Namespace) -> int:
    """Write a report, print its first tables; return 1 if it leaves runs out."""
    from linearpatch.report.report import write_report
    from linearpatch.report.wandb_view import push_wandb_report

    output = arguments.output or arguments.folders[0] / "report"
    report = write_report(
        arguments.folders, output, title=arguments.title, published=arguments.published, facet=arguments.facet
    )
    for table in report.terminal_tables():
        out.print(table)
    out.print(f"{report.folder}/report.html and {counted(len(report.files) - 1, 'file')} more", soft_wrap=True)
    if arguments.wandb:
        out.print(push_wandb_report(arguments.folders, title=arguments.title), soft_wrap=True)
    return 1 if report.failures else 0
