"""The same comparison as a report on Weights & Biases, over the runs that were tracked there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError, StorageError
from linearpatch.report.markdown import escape, markdown_table
from linearpatch.report.quantities import all_metrics
from linearpatch.report.reading import Run, read_runs
from linearpatch.report.report import Comparison, compare_runs, default_title
from linearpatch.results.stages import STAGES
from linearpatch.text import counted

log = logging.getLogger(__name__)

MOST_PANELS = 12  # of each kind: a report is for reading


def push_wandb_report(
    folders: Sequence[Path], *, project: str | None = None, entity: str | None = None, title: str | None = None
) -> str:
    """Compare all runs in some folders and below them on W&B. The runs themselves must be there already.

    Args:
        folders: Of runs or sweeps.
        project: Project on W&B; None takes the one that the runs were tracked in.
        entity: Team or user; None takes the runs' own, or the account's default.
        title: Its head; None names the models.

    Returns:
        Its address.

    Raises:
        ConfigError: wandb-workspaces isn't installed, or the runs were tracked in several projects.
        StorageError: there is no record, or W&B rejects the report.
    """
    _workspaces()
    comparison = compare_runs(read_runs(folders))
    runs = comparison.selected.runs
    project = project or _tracked(runs, "project") or "linearpatch"
    view = build_wandb_report(comparison, project, entity or _tracked(runs, "entity") or "", title)
    try:
        view.save()
        return str(view.url)
    except Exception as error:  # W&B raises its own kinds and its client's
        reason = " ".join(str(error).split())
        raise StorageError(f"W&B rejects the report: {reason} Log in with `wandb login`, and try again.") from error


def build_wandb_report(comparison: Comparison, project: str, entity: str = "", title: str | None = None) -> Any:
    """The report as an object of wandb-workspaces, without a network; `.save()` puts it on W&B.

    Raises:
        ConfigError: wandb-workspaces isn't installed.
    """
    reports, expressions = _workspaces()
    names = sorted(run.record.run_id for run in comparison.selected.runs)
    runset = reports.Runset(
        project=project, entity=entity, name="runs", filters=expressions.And(expressions.Metric("Name").isin(names))
    )
    tables = [
        block
        for table in comparison.tables
        for block in (reports.H2(table.title), reports.MarkdownBlock(markdown_table(table)))
    ]
    grid = reports.PanelGrid(runsets=[runset], panels=_panels(comparison, reports))
    failures = comparison.selected.failures
    left_out = [
        f"- {escape(failure.run_id)} ({escape(failure.status)}): {escape(failure.reason)}" for failure in failures
    ]
    return reports.Report(
        project=project,
        entity=entity,
        title=title or default_title(comparison),
        description=f"{counted(len(names), 'run')} compared by linearpatch report",
        blocks=[
            reports.TableOfContents(),
            reports.H1("Runs"),
            grid,
            reports.H1("Tables"),
            *tables,
            *([reports.H1("Left out"), reports.MarkdownBlock("\n".join(left_out))] if left_out else []),
        ],
    )


def _panels(comparison: Comparison, reports: Any) -> list[Any]:
    """Perplexity and what is retained against layers removed, quality against speed, losses, and all settings."""
    known = all_metrics(comparison.rows)
    stages = [stage for stage in STAGES[1:] if any(row.variant.stage == stage for row in comparison.rows)]
    corpora = [name for name in known if name.startswith("ppl/")]
    averages = [name for name, measure in known.items() if measure.headline and measure.unit == "share"]
    count = reports.SummaryMetric("num_removed")

    def scatter(title: str, x: Any, y: str, *, log_y: bool = False) -> Any:
        return reports.ScatterPlot(title=title, x=x, y=reports.SummaryMetric(y), log_y=log_y)

    quality = [
        scatter(f"{stage}: {corpus}", count, f"{stage}/{corpus}", log_y=True) for corpus in corpora for stage in stages
    ]
    quality += [
        scatter(f"{stage}: retained {name}, mean of ratios", count, f"{stage}/retained/mean_of_ratios/{name}")
        for name in averages
        for stage in stages
    ]
    speeds = [name for name in ("speed/prefill_tokens_per_s", "speed/decode_tokens_per_s") if name in known]
    speed = [
        scatter(f"{stage}: {corpus}", reports.SummaryMetric(f"{stage}/{name}"), f"{stage}/{corpus}", log_y=True)
        for corpus in corpora[:1]
        for name in speeds
        for stage in stages
    ]
    training = []
    if any(run.record.distillation for run in comparison.selected.runs):
        losses = ["distill/loss", "distill/validation_loss"]
        training = [reports.LinePlot(title=name, x="distill/step", y=[name]) for name in losses]
    columns = [
        reports.ParallelCoordinatesPlotColumn(metric=reports.Config(f"choices.{name}"), display_name=name)
        for name in ("model", "pruner", "patch", "distill")
    ]
    columns.append(reports.ParallelCoordinatesPlotColumn(metric=count, display_name="layers removed"))
    columns += [
        reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric(f"{stages[-1]}/{corpus}"), log=True)
        for corpus in corpora[:1]
        if stages
    ]
    overview = reports.ParallelCoordinatesPlot(title="choices and perplexity", columns=columns)
    return [overview, *quality[:MOST_PANELS], *speed[:MOST_PANELS], *training, reports.RunComparer(diff_only=True)]


def _tracked(runs: Sequence[Run], key: str) -> str | None:
    """What the runs' tracker was set to; None where it wasn't W&B, or left it open.

    Raises:
        ConfigError: they differ.
    """
    trackers = [run.record.config.get("tracker") for run in runs]
    # Records of earlier versions hold the settings of the one tracker that a run had, not those of several by name.
    chosen = [tracker.get("wandb", tracker) for tracker in trackers if isinstance(tracker, dict)]
    values = {settings.get(key) for settings in chosen if isinstance(settings, dict)}
    named = sorted(str(value) for value in values if value)
    if len(named) > 1:
        raise ConfigError(
            f"The runs were tracked with several values of tracker.wandb.{key}: {', '.join(named)}. Name one."
        )
    return named[0] if named else None


def _workspaces() -> tuple[Any, Any]:
    """The packages to build reports and filters with.

    Raises:
        ConfigError: they aren't installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import expr
    except ImportError as error:
        raise ConfigError(
            "A report on W&B needs wandb-workspaces. Run: pip install 'linearpatch[wandb]' — or leave --wandb out."
        ) from error
    return reports, expr
