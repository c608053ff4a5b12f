"""MLflow, in a folder beside the runs, or on a server that the user names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas

from linearpatch.registry import component
from linearpatch.results.record import Record, flat
from linearpatch.storage.leases import leased
from linearpatch.tracking.tracker import Curve, Tracker, require_package
from linearpatch.tracking.views import against_layers, figures, labels, scalars, tables

STORE = "mlruns"
RUN_ID = "mlflow_run_id"  # file of the run's folder: a run that is added to later stays one run there
ENDINGS = {"completed": "FINISHED", "interrupted": "KILLED"}
MOST_METRICS, MOST_PARAMETERS = 1_000, 100  # that MLflow takes at a time
MOST_CHARACTERS = 250  # of a name


@component("tracker", "mlflow")
@dataclass(frozen=True)
class MlflowTracker(Tracker):
    """One MLflow run for each run: settings, metrics against layers removed, tables, figures.

    Attributes:
        uri: MLflow's backend store, such as `sqlite:///mlflow.db` or `http://localhost:5000`; null is the folder
            `mlruns` beside the run's folder, which the runs of a sweep share.
        experiment: MLflow's experiment; null is the run's group, or `linearpatch`.
        figures: Whether the report's figures of the run are kept there, too.
    """

    uri: str | None = None
    experiment: str | None = None
    figures: bool = True

    def __post_init__(self) -> None:
        require_package("mlflow", needed_by="tracker=mlflow", install="pip install 'linearpatch[mlflow]'")

    @contextmanager
    def follow(self, record: Record, folder: Path) -> Iterator[Curve]:
        """Open an MLflow run, and show the record when the block ends, however it ends."""
        client, run_id = self._opened(record, folder)
        try:
            yield lambda point: _log(client, run_id, point, step=int(point.get("distill/step", 0)))
        finally:
            try:
                self._show(client, run_id, record, folder)
            finally:
                client.set_terminated(run_id, ENDINGS.get(record.status, "FAILED"))

    def _opened(self, record: Record, folder: Path) -> tuple[Any, str]:
        """A client, and the id of this run's run."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
        if self.uri is None:  # MLflow maintains its store of files, but advertises databases
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        name = self.experiment or record.group or "linearpatch"
        base = folder.resolve().parent
        # Runs of a sweep start together, and MLflow would create the same store and experiment twice.
        with leased(base / f".{STORE}.lease", "MLflow's store") if self.uri is None else nullcontext():
            client = MlflowClient(tracking_uri=self.uri or (base / STORE).as_uri())
            try:
                experiment = client.get_experiment_by_name(name)
                experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
            except MlflowException:  # on a server another process may have just created it
                if (experiment := client.get_experiment_by_name(name)) is None:
                    raise
                experiment_id = experiment.experiment_id
        file = folder / RUN_ID
        if file.is_file():
            try:
                run_id: str = client.get_run(file.read_text(encoding="utf-8").strip()).info.run_id
                client.update_run(run_id, status="RUNNING")
                return client, run_id
            except MlflowException:  # it was deleted, or is in another store
                pass
        run_id = client.create_run(experiment_id, run_name=record.run_id).info.run_id
        file.write_text(f"{run_id}\n", encoding="utf-8")
        return client, run_id

    def _show(self, client: Any, run_id: str, record: Record, folder: Path) -> None:
        """Log all that the record holds."""
        from mlflow.entities import Param, RunTag

        known = client.get_run(run_id).data.params  # MLflow rejects another value for one
        settings = {_name(name): str(value) for name, value in {**flat(record.config), **labels(record)}.items()}
        if record.pruning:
            settings["removed_layers"] = str(record.pruning.removed or record.pruning.removed_layers)
        new = [Param(name, value) for name, value in settings.items() if name not in known]
        for part in _parts(new, MOST_PARAMETERS):
            client.log_batch(run_id, params=part)
        tags = {name: str(value) for name, value in labels(record).items()}
        tags |= {"run_id": record.run_id, "status": record.status, "group": record.group or ""}
        client.log_batch(run_id, tags=[RunTag(_name(name), value) for name, value in tags.items()])
        drawn = against_layers(record)
        for count, values in drawn.items():
            _log(client, run_id, values, step=count)
        last = max(drawn, default=0)
        shown = {name for values in drawn.values() for name in values}
        _log(client, run_id, {key: value for key, value in scalars(record).items() if key not in shown}, step=last)
        with TemporaryDirectory() as scratch:
            files = {
                f"tables/{name}.csv": pandas.DataFrame(table.rows, columns=table.columns).to_csv(index=False).encode()
                for name, table in tables(record, folder).items()
            }
            if self.figures:
                files |= {f"figures/{name}.png": png for name, png in figures(record, folder).items()}
            for path, content in files.items():
                (Path(scratch) / path).parent.mkdir(exist_ok=True)
                (Path(scratch) / path).write_bytes(content)
            client.log_artifacts(run_id, scratch)


def _log(client: Any, run_id: str, values: Mapping[str, float], *, step: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(_name(name), value, now, step) for name, value in values.items() if name != "distill/step"]
    for part in _parts(metrics, MOST_METRICS):
        client.log_batch(run_id, metrics=part)


def _parts(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[at : at + size] for at in range(0, len(values), size))


def _name(name: str) -> str:
    """A name of characters that MLflow takes."""
    return re.sub(r"[^\w.\- :/]", "_", name)[:MOST_CHARACTERS]
