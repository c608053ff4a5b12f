"""Weights & Biases, offline until the user turns it on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.errors import ConfigError, StorageError, require_choice
from linearpatch.registry import component
from linearpatch.results.fields import plain
from linearpatch.results.record import Record
from linearpatch.results.scores import LayerScores
from linearpatch.tracking.tracker import Curve, Tracker

MODES = ("offline", "online")


@component("tracker", "wandb")
@dataclass(frozen=True)
class WandbTracker(Tracker):
    """One W&B run for each run: config, stage metrics, timings, interfaces and layer scores.

    Attributes:
        mode: `offline` writes to the run's folder (`wandb sync` uploads it later), `online` streams.
        project: Project on W&B.
        entity: Team or user; null is the account's default.
        tags: Labels.
    """

    mode: str = "offline"
    project: str = "linearpatch"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_choice("tracker.mode", self.mode, MODES)

    @contextmanager
    def follow(self, record: Record, folder: Path) -> Iterator[Curve]:
        """Open a W&B run, and show the record when the block ends, however it ends."""
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("tracker=wandb needs wandb. Run: pip install wandb — or use tracker=none.") from error
        os.environ.setdefault("WANDB_SILENT", "true")  # the run prints its own summary
        try:
            tracked = wandb.init(
                mode=self.mode,  # type: ignore[arg-type]  # checked by __post_init__
                project=self.project,
                entity=self.entity,
                tags=list(self.tags) or None,
                dir=str(folder),
                id=run_key(record, folder),
                resume="allow" if self.mode == "online" else None,
                name=record.run_id,
                group=record.group,
                config=record.config,
            )
        except Exception as error:  # W&B raises its own kinds and its client's
            raise StorageError(
                f"W&B can't be started (tracker.mode={self.mode}): {' '.join(str(error).split())} Log in with "
                "`wandb login`, or use tracker.mode=offline or tracker=none."
            ) from error
        completed = False
        try:
            tracked.define_metric("distill/*", step_metric="distill/step")
            yield lambda point: tracked.log(dict(point))
            completed = True
        finally:
            if record.metrics:
                tracked.log(self._history(record, wandb))
            tracked.summary.update({"run_id": record.run_id, "completed": completed, **summary(record)})
            tracked.finish(exit_code=0 if completed else 1)

    @staticmethod
    def _history(record: Record, wandb: Any) -> dict[str, Any]:
        tables: dict[str, Any] = {}
        if record.pruning:
            sites = [plain(site) for site in record.patch.sites] if record.patch else []
            columns = sorted(
                {key for site in sites for key in site}, key=lambda key: (key not in ("start", "end"), key)
            )
            rows = [[site.get(column) for column in columns] for site in sites] or [
                list(one) for one in record.pruning.interfaces
            ]
            tables["interfaces"] = wandb.Table(columns=columns or ["start", "end"], data=rows)
            scores = record.pruning.scores
            if isinstance(scores, LayerScores):
                score_rows = [
                    [step, int(layer), loss]
                    for step, losses in enumerate(scores.by_step)
                    for layer, loss in losses.items()
                ]
                columns = ["step", scores.unit, scores.criterion]
                tables["layer_scores"] = wandb.Table(columns=columns, data=score_rows)
        return tables


def run_key(record: Record, folder: Path) -> str:
    """W&B's id of a run: a run that is added to later, or resumed after it was killed, stays one run there."""
    return hashlib.sha256(f"{record.run_id} {folder.resolve()}".encode()).hexdigest()[:16]


def summary(record: Record) -> dict[str, Any]:
    """Flat names and numbers: `patched/ppl/wikitext2`, `time/rank`, `removed_layers`."""
    metrics = {
        f"{stage}/{name}": metric.value
        for stage, measured in record.metrics.items()
        for name, metric in measured.items()
    }
    retained = {
        f"{stage}/retained/{definition}/{name}": kept.value
        for stage, definitions in record.retained.items()
        for definition, values in definitions.items()
        for name, kept in values.items()
    }
    timings = {f"time/{step}": seconds for step, seconds in record.timings_s.items()}
    removed = record.pruning.removed_layers if record.pruning else []
    return {**metrics, **retained, **timings, "removed_layers": str(removed), "num_removed": len(removed)}
