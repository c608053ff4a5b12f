"""Weights & Biases, offline until the user turns it on."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearpatch.errors import require_choice
from linearpatch.registry import component
from linearpatch.results.record import Record
from linearpatch.results.stages import STAGES
from linearpatch.tracking.tracker import Curve, Tracker, require_package
from linearpatch.tracking.views import NUM_REMOVED, against_layers, figures, labels, scalars, tables

log = logging.getLogger(__name__)

MODES = ("offline", "online")
MOST_CHARACTERS = 64  # of a tag
MOST_ROWS = 10_000  # of a table, which W&B's pages load as a whole


@component("tracker", "wandb")
@dataclass(frozen=True)
class WandbTracker(Tracker):
    """One W&B run for each run: choices, metrics against layers removed, tables, figures.

    Attributes:
        mode: `offline` writes to the run's folder (`wandb sync` uploads it later), `online` streams.
        project: Project on W&B.
        entity: Team or user; null is the account's default.
        tags: Labels, beside those of model, pruner, patch, corpus and layers removed.
        figures: Whether the report's figures of the run are kept there, too.
    """

    mode: str = "offline"
    project: str = "linearpatch"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    figures: bool = True

    def __post_init__(self) -> None:
        require_choice("tracker.wandb.mode", self.mode, MODES)
        require_package("wandb", needed_by="tracker=wandb", install="pip install wandb")

    @contextmanager
    def follow(self, record: Record, folder: Path) -> Iterator[Curve]:
        """Open a W&B run, and show the record when the block ends, however it ends."""
        os.environ.setdefault("WANDB_SILENT", "true")  # the run prints its own summary
        run = self._started(record, folder)
        try:
            run.define_metric("distill/*", step_metric="distill/step")
            for stage in STAGES:
                run.define_metric(f"{stage}/*", step_metric=NUM_REMOVED)
            yield lambda point: run.log(dict(point))
        finally:
            try:
                self._show(run, record, folder)
            finally:
                run.finish(exit_code=0 if record.status == "completed" else 1)

    def _started(self, record: Record, folder: Path) -> Any:
        """A run on W&B; where that can't be reached, one that is kept offline."""
        import wandb

        def init(mode: str) -> Any:
            return wandb.init(
                mode=mode,  # type: ignore[arg-type]  # checked by __post_init__
                project=self.project,
                entity=self.entity,
                tags=list(dict.fromkeys([*run_tags(record), *self.tags])),
                dir=str(folder),
                id=run_key(record, folder),
                resume="allow" if mode == "online" else None,
                name=record.run_id,
                group=record.group,
                config=run_config(record),
            )

        try:
            return init(self.mode)
        except Exception as error:  # W&B raises its own kinds and its client's
            if self.mode == "offline":
                raise
            log.warning(
                "W&B can't be reached (tracker.wandb.mode=online): %s The run is kept offline. Log in with "
                "`wandb login`, and upload it later: wandb sync %s",
                " ".join(str(error).split()),
                folder / "wandb" / "offline-run-*",
            )
            return init("offline")

    def _show(self, run: Any, record: Record, folder: Path) -> None:
        """Log all that the record holds."""
        import wandb
        from PIL import Image

        if record.pruning:
            settled = {"removed_layers": record.pruning.removed_layers, "interfaces": record.pruning.interfaces}
            run.config.update(settled, allow_val_change=True)
        for count, metrics in against_layers(record).items():
            run.log({NUM_REMOVED: count, **metrics})
        run.summary.update({"run_id": record.run_id, "status": record.status, **scalars(record)})
        if record.pruning:
            run.summary["num_removed"] = record.size  # as `linearpatch report --wandb` reads it
        media: dict[str, Any] = {}
        for name, table in tables(record, folder).items():
            if len(table.rows) > MOST_ROWS:
                log.info("W&B gets the first %d of %d rows of the table %s", MOST_ROWS, len(table.rows), name)
            media[f"tables/{name}"] = wandb.Table(columns=list(table.columns), data=list(table.rows[:MOST_ROWS]))
        for name, png in (figures(record, folder) if self.figures else {}).items():
            media[f"figures/{name}"] = wandb.Image(Image.open(io.BytesIO(png)), caption=name)
        if media:
            run.log(media)


def run_config(record: Record) -> dict[str, Any]:
    """A run's settings, with flat names of its choices (`pruner_name`) that W&B can group, filter and sort by."""
    return {**record.config, **{f"{group}_name": name for group, name in record.config.get("choices", {}).items()}}


def run_tags(record: Record) -> list[str]:
    """What W&B filters runs by: model, pruner, patch, corpus, and `n=5` for the layers removed."""
    chosen = labels(record)
    tags = [str(chosen[name]) for name in ("model", "pruner", "patch", "corpus") if chosen.get(name)]
    return [tag[:MOST_CHARACTERS] for tag in (*tags, f"n={chosen[NUM_REMOVED]}")]


def run_key(record: Record, folder: Path) -> str:
    """W&B's id of a run: a run that is added to later, or resumed after it was killed, stays one run there."""
    return hashlib.sha256(f"{record.run_id} {folder.resolve()}".encode()).hexdigest()[:16]
