"""What a record holds, section by section: the types and ranges that a `result.json` is checked against when read.

A record comes from a disk that others write to, too. It is parsed here once, so that whatever reads it afterwards
(tables, the report, the status of a sweep, the next run in its folder) may rely on its types, and so that a bad record
is known by its reason. Sections may hold more than is named here: later versions add fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import from_json, to_json

from linearpatch.text import printable

SCHEMA_VERSION = 1
MOST_BYTES = 32 * 2**20  # of a file; the largest records that runs write have less than a tenth
MOST_LAYERS = 2_000
MOST_METRICS = 5_000  # of a stage
LARGEST = 1e100  # of any number: sums, squares and ratios of such are finite, too

SECTION = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

Name = Annotated[str, Field(max_length=1_000)]
Words = Annotated[str, Field(max_length=100_000)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(ge=0, le=LARGEST)]
Layer = Annotated[int, Field(ge=0, le=MOST_LAYERS)]


@dataclass(frozen=True, config=SECTION)
class ModelSection:
    """The dense model."""

    name: Name
    num_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    num_parameters: Annotated[int, Field(ge=1, le=10**18)]
    fingerprint: Name = ""
    dtype: Name = ""
    note: Words | None = None


@dataclass(frozen=True, config=SECTION)
class CalibrationSection:
    """The tokens that layers were chosen with and patches fitted on."""

    corpus: Name = ""
    num_blocks: Count = 0
    block_length: Count = 0
    token_hash: Name = ""
    repetitions_left_out: Count = 0
    held_out: dict[str, Any] | None = None
    notes: list[Words] = field(default_factory=list)


@dataclass(frozen=True, config=SECTION)
class PruningSection:
    """Which layers were removed, and why; what `scores` hold is the pruner's own."""

    method: Name
    removed_layers: Annotated[list[Layer], Field(max_length=MOST_LAYERS)]
    interfaces: Annotated[list[tuple[Layer, Layer]], Field(max_length=MOST_LAYERS)]
    num_parameters_removed: Count
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    sees_patches: bool = False
    scores: dict[str, Any] = field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.removed_layers)) < len(self.removed_layers):
            raise ValueError("removed_layers names a layer twice")
        if any(start >= end for start, end in self.interfaces):
            raise ValueError("interfaces has one that ends before it starts")
        return self


@dataclass(frozen=True, config=SECTION)
class StepSection:
    """A step of a search: the loss without each layer that was left, and what was removed."""

    removed: Layer | list[Layer]
    losses: dict[Annotated[str, Field(pattern=r"^\d{1,4}$")], Number | None]


@dataclass(frozen=True, config=SECTION)
class ScoresSection:
    """The scores of a pruner as the report draws them: values of layers or windows, or the steps of a search."""

    values: Annotated[list[Number | None], Field(max_length=MOST_LAYERS)] = field(default_factory=list)
    steps: Annotated[list[StepSection], Field(max_length=MOST_LAYERS)] = field(default_factory=list)
    criterion: Name = "score"
    unit: Name = "layer"

    @property
    def losses(self) -> list[dict[str, float | None]]:
        """Those of each step of a search that measured any."""
        return [step.losses for step in self.steps if step.losses]

    @classmethod
    def of(cls, scores: Mapping[str, Any]) -> ScoresSection:
        """The scores of a record.

        Raises:
            ValueError: a plug-in recorded them in another form, or somebody changed them.
        """
        present = {name: value for name, value in scores.items() if value is not None}
        try:
            return TypeAdapter(cls).validate_json(to_json(present))
        except ValidationError as error:
            raise ValueError(reason_of(error)) from error


@dataclass(frozen=True, config=SECTION)
class SiteSection:
    """What a fit says of one interface."""

    start: Layer
    end: Layer
    error_before: Number | None = None
    error_after: Number | None = None
    scale_mean: Number | None = None
    scale_std: Number | None = None
    scale_min: Number | None = None
    scale_max: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start >= self.end:
            raise ValueError("it ends before it starts")
        return self


@dataclass(frozen=True, config=SECTION)
class PatchSection:
    """What was fitted."""

    method: Name
    num_parameters: Count
    sites: Annotated[list[SiteSection], Field(max_length=MOST_LAYERS)] = field(default_factory=list)


@dataclass(frozen=True, config=SECTION)
class PointSection:
    """A point of a loss curve."""

    step: Count
    loss: Number | None = None
    validation_loss: Number | None = None


@dataclass(frozen=True, config=SECTION)
class DistillationSection:
    """How training went."""

    method: Name
    num_parameters: Count
    best_step: Count
    curve: list[PointSection] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=SECTION)
class MetricSection:
    """A number with all that is needed to trust or repeat it; see `evaluation.evaluation.Metric`."""

    value: Number | None
    stderr: Positive | None
    n: Count
    protocol: Words
    token_hash: Name
    unit: Name = ""
    counted: Name = "tokens"
    headline: bool = False
    reason: Words | None = None
    versus: dict[str, dict[str, Number]] = field(default_factory=dict)
    parts: list[Name] = field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for base, versus in self.versus.items():
            if not ({"ratio", "low", "high"} <= versus.keys() or "difference" in versus):
                raise ValueError(f"versus.{base} holds neither a difference nor a ratio with its interval")
            if ("low" in versus) != ("high" in versus):
                raise ValueError(f"versus.{base} has half an interval")
        return self


@dataclass(frozen=True, config=SECTION)
class RetainedSection:
    """Retained performance of an average, as a fraction."""

    value: Number
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("there is half an interval")
        return self


@dataclass(frozen=True, config=SECTION)
class CheckpointSection:
    """What was saved."""

    folder: Name
    format: Name
    bytes: Count = 0
    pushed_to: Words | None = None


@dataclass(frozen=True, config=SECTION)
class EnvironmentSection:
    """What the run ran on."""

    packages: dict[str, Name] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    git_commit: Name | None = None


@dataclass(frozen=True, config=SECTION)
class ConfigSection:
    """The parts of a configuration that readers look into."""

    choices: dict[str, Name] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=SECTION)
class Sections:
    """A whole record. A section that the run hasn't come to is empty: None here."""

    run_id: Annotated[str, Field(min_length=1, max_length=1_000)]
    group: Name | None
    command: Words
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    config: ConfigSection
    schema_version: Annotated[int, Field(ge=1)]
    status: Literal["running", "completed", "failed", "interrupted"]
    error: Words | None = None
    remark: Words | None = None
    model: ModelSection | None = None
    calibration: CalibrationSection | None = None
    pruning: PruningSection | None = None
    patch: PatchSection | None = None
    distillation: DistillationSection | None = None
    metrics: dict[Name, Annotated[dict[Name, MetricSection], Field(max_length=MOST_METRICS)]] = field(
        default_factory=dict
    )
    retained: dict[Name, dict[Name, dict[Name, RetainedSection]]] = field(default_factory=dict)
    checkpoint: CheckpointSection | None = None
    answered: dict[str, str] = field(default_factory=dict)
    timings_s: dict[Name, Annotated[float, Field(ge=0, le=1e12)]] = field(default_factory=dict)
    peak_memory_bytes: dict[Name, Count] = field(default_factory=dict)
    environment: EnvironmentSection = field(default_factory=EnvironmentSection)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None or self.pruning is None:
            return self
        layers, pruning = self.model.num_layers, self.pruning
        outside = [layer for layer in pruning.removed_layers if layer >= layers]
        outside += [end for _, end in pruning.interfaces if end > layers]
        outside += [site.end for site in (self.patch.sites if self.patch else ()) if site.end > layers]
        if outside:
            raise ValueError(f"there is layer {outside[0]} of a model that has {layers} layers")
        if pruning.num_parameters_removed > self.model.num_parameters:
            raise ValueError("pruning removed more parameters than the model has")
        return self

    def require_model_and_edit(self) -> None:
        """Raise `ValueError` unless the sections are there that every completed run has."""
        missing = [name for name in ("model", "pruning", "patch") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"the run completed, and its record has no {' and no '.join(missing)}")


_SECTIONS: TypeAdapter[Sections] = TypeAdapter(Sections)
_MAY_BE_EMPTY = ("model", "calibration", "pruning", "patch")


def parse(text: bytes) -> tuple[Sections, dict[str, Any]]:
    """A record's text as checked sections, and as plain values.

    Raises:
        ValueError: it isn't JSON or isn't a record of this version; the message says where and why.
    """
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no fields")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(f"its schema version {version} is newer than {SCHEMA_VERSION}")
    content = _printable(content)
    return check(content), content


def check(content: Mapping[str, Any]) -> Sections:
    """Plain values as sections.

    Raises:
        ValueError: they aren't a record of this version.
    """
    for name in _MAY_BE_EMPTY:
        if name in content and content[name] is None:
            raise ValueError(f"{name}: it is null; allowed: a section, which may be empty")
    present = {name: value for name, value in content.items() if not (name in _MAY_BE_EMPTY and value == {})}
    try:
        return _SECTIONS.validate_json(to_json(present))  # as JSON, whose arrays are lists and tuples alike
    except ValidationError as error:
        raise ValueError(reason_of(error)) from error


def reason_of(error: ValidationError) -> str:
    """The first two faults: where, what, and the value."""
    faults = error.errors(include_url=False, include_context=False)
    told = []
    for fault in faults[:2]:
        place = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        shown = "" if fault["type"] in ("value_error", "missing") else f" (it is {_short(fault['input'])})"
        told.append(f"{place}: {what}{shown}" if place else what)
    more = f"; and {len(faults) - 2} more" if len(faults) > 2 else ""
    return "; ".join(told) + more


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}…"


def _printable(value: Any) -> Any:
    """Values with control characters as escapes, since terminals obey them; infinite numbers are rejected."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("it holds a number beyond the range of numbers, such as 1e999")
    return value
