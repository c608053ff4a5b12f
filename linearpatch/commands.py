"""What the command line does, from Python: compose an experiment, run it, run a sweep, load a model by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from linearpatch import pipeline
from linearpatch.cli import run as cli_run
from linearpatch.cli.jobs import Jobs
from linearpatch.config import check_choices, compose_experiment, register_schemas
from linearpatch.config_errors import readable_errors
from linearpatch.errors import ConfigError
from linearpatch.experiment import Experiment
from linearpatch.models.origins import Origin, remember_origin
from linearpatch.overrides import command, expanded, override
from linearpatch.results.record import Record


def load_model(name: str, **settings: Any) -> tuple[PreTrainedModel, Any]:
    """Load a dense model as a run would.

    Args:
        name: A choice of the group `model` such as `smollm2_135m`, a folder (`./folder`) or an id of the hub.
        settings: Of the model, such as `dtype="bfloat16"` or `device="cpu"`.

    Returns:
        The model and its tokenizer.
    """
    words = expanded([f"model={name}", *(override(f"model.{key}", value) for key, value in settings.items())])
    experiment = compose(*words)
    chosen = experiment.model
    loaded = chosen.load(experiment.cache_path)
    model = loaded.decoder.model
    remember_origin(model, Origin(chosen.label, chosen.origin, chosen.hub_id, chosen.known_license))
    return model, loaded.tokenizer


def compose(*overrides: str) -> Experiment:
    """The experiment that `linearpatch run` would run, checked but not begun."""
    _require_overrides(overrides)
    return compose_experiment(list(overrides))


def _require_overrides(overrides: Sequence[Any]) -> None:
    for word in overrides:
        if not isinstance(word, str):
            raise ConfigError(
                f"An override is a {type(word).__name__}. Allowed: texts such as 'pruner=sleb'; pass a list of them "
                "with a star, as in run(*overrides)."
            )
        if word.startswith("-"):
            raise ConfigError(f"The override {word!r} is an option of the command line. For a sweep use run_sweep.")


def run(*overrides: str, **more: Any) -> Record:
    """Run an experiment, as `linearpatch run` does.

    Args:
        overrides: Such as `pruner=sleb` and `num_pruned_layers=5`.
        more: Passed on to `linearpatch.pipeline.run`, such as `folder`.

    Returns:
        Its record.
    """
    experiment = compose(*overrides)
    more.setdefault("command", command(overrides))
    return pipeline.run(experiment, **more)


def run_sweep(*overrides: str) -> list[Record]:
    """Run a sweep, as `linearpatch run -m` does; jobs run in processes of their own.

    Args:
        overrides: Such as `pruner=sleb,shortgpt` and `patch=none,rotate`.

    Returns:
        The records of its runs, in order; those that failed say why.
    """
    _require_overrides(overrides)
    register_schemas()
    check_choices(list(overrides))
    jobs = Jobs()
    with readable_errors():
        cli_run.compose(cli_run.parse(["-m", *overrides]), jobs)
    return [outcome.record for outcome in jobs.outcomes]
