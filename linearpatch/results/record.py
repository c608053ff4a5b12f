"""The run record: all that a run was asked for, did and found. Trackers, tables and reports are views of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, with_config

from linearpatch.results.budget import BudgetSection
from linearpatch.results.environment import environment
from linearpatch.results.fields import CHECKED, Count, Name, Words, plain
from linearpatch.results.metric import Metric, Retained
from linearpatch.results.sections import (
    CalibrationSection,
    CheckpointSection,
    DistillationSection,
    EnvironmentSection,
    ModelSection,
    PatchSection,
    PruningSection,
)
from linearpatch.runtime.memory import high_water
from linearpatch.runtime.progress import notify

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MAX_METRICS = 5_000  # of a stage

Metrics = Annotated[dict[Name, Metric], Field(max_length=MAX_METRICS)]


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check the parts of a configuration that readers look into."""
    choices, corpus = config.get("choices", {}), config.get("corpus", {})
    if not isinstance(choices, dict) or not all(isinstance(name, str) for name in choices.values()):
        raise ValueError("choices holds something else than names")
    if not isinstance(corpus, dict):
        raise ValueError("corpus holds no settings")
    return config


@with_config(CHECKED)
@dataclass
class Record:
    """Everything a run was asked for, did and found, as `result.json` holds it.

    A section that the run hasn't come to is None. `remark` is what readers should know of the run; `answered` says
    which of `Experiment.required_results` are there, so that the same run started again knows what is left to do.
    """

    run_id: Annotated[str, Field(min_length=1, max_length=1_000)]
    group: Name | None
    command: Words
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    config: Annotated[dict[str, Any], AfterValidator(check_config)]
    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    status: Literal["running", "completed", "failed", "interrupted"] = "running"
    error: Words | None = None
    remark: Words | None = None
    model: ModelSection | None = None
    calibration: CalibrationSection | None = None
    pruning: PruningSection | None = None
    budget: BudgetSection | None = None
    patch: PatchSection | None = None
    distillation: DistillationSection | None = None
    metrics: dict[Name, Metrics] = field(default_factory=dict)
    retained: dict[Name, dict[Name, dict[Name, Retained]]] = field(default_factory=dict)
    checkpoint: CheckpointSection | None = None
    answered: dict[str, str] = field(default_factory=dict)
    timings_s: dict[Name, Annotated[float, Field(ge=0, le=1e12)]] = field(default_factory=dict)
    peak_memory_bytes: dict[Name, Count] = field(default_factory=dict)
    environment: EnvironmentSection = field(default_factory=environment)

    def __post_init__(self) -> None:
        if self.model is None or self.pruning is None:
            return
        layers, pruning = self.model.num_layers, self.pruning
        outside = [layer for layer in pruning.removed_layers if layer >= layers]
        ends = [end for _, end in pruning.interfaces] + [site.end for site in (self.patch.sites if self.patch else ())]
        outside += [int(end) for end in ends if end > layers]
        outside += [layer for layer in map(_layer_of, pruning.removed) if layer >= layers]
        if outside:
            raise ValueError(f"there is layer {outside[0]} of a model that has {layers} layers")
        if pruning.num_parameters_removed > self.model.num_parameters:
            raise ValueError("pruning removed more parameters than the model has")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step of the run and note the memory it needed at most.

        On a GPU that is the memory allocated during the step; on the CPU the process' high-water mark.
        """
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        log.info("%s …", name)
        notify(name)
        try:
            yield
        finally:
            self.timings_s[name] = round(time.perf_counter() - started, 3)
            self.peak_memory_bytes[name] = torch.cuda.max_memory_allocated() if cuda else high_water()

    def num_parameters(self, stage: str) -> int:
        """Parameters that a stage's model has."""
        model, pruning, patch = self.require_edit()
        if stage == "dense":
            return model.num_parameters
        added = {"patched": patch.num_parameters}
        if self.distillation:
            added["distilled"] = self.distillation.num_parameters
        return model.num_parameters - pruning.num_parameters_removed + added.get(stage, 0)

    def require_edit(self) -> tuple[ModelSection, PruningSection, PatchSection]:
        """The sections that every completed run has.

        Raises:
            ValueError: one of them is missing.
        """
        if self.model is None or self.pruning is None or self.patch is None:
            missing = [name for name in ("model", "pruning", "patch") if getattr(self, name) is None]
            raise ValueError(f"the run completed, and its record has no {' and no '.join(missing)}")
        return self.model, self.pruning, self.patch

    @property
    def size(self) -> int:
        """Layers or sublayers removed, or of a narrowed model as many as have the parameters that it lost."""
        if self.pruning is None:
            return 0
        if self.pruning.narrowed:
            return self.budget.num_pruned_layers if self.budget else int(self.config.get("num_pruned_layers", 0))
        return len(self.pruning.removed or self.pruning.removed_layers)

    @property
    def unit(self) -> str:
        """What was chosen among: `layer`, or `attention`, `mlp` or `sublayer` for either kind."""
        kinds = {name.partition(".")[2] or "layer" for name in self.pruning.removed} if self.pruning else set()
        chosen = self.config.get("pruner", {})
        named = chosen.get("unit") if isinstance(chosen, Mapping) else None
        return str(named or (kinds.pop() if len(kinds) == 1 else "sublayer")) if kinds else "layer"

    def to_plain(self) -> dict[str, Any]:
        """The record as values of JSON; numbers that aren't finite become null."""
        content: dict[str, Any] = plain(self)
        return content | {name: content[name] or {} for name in ("model", "calibration", "pruning", "patch")}

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(self.to_plain(), indent=2, allow_nan=False)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys.

    >>> flat({"patch": {"ridge": 0.1}, "seed": 0})
    {'patch.ridge': 0.1, 'seed': 0}
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _layer_of(unit: str) -> int:
    """The layer of a unit's name, such as `3.attention`."""
    return int(unit.partition(".")[0])
