"""The sections of a record: the model, the tokens, what was removed, fitted, trained and saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, with_config

from linearpatch.results.fields import CHECKED, MAX_LAYERS, Count, Layer, Name, Number, StreamPlace, Words
from linearpatch.results.scores import LayerName, LayerScores, UnitName


@with_config(CHECKED)
@dataclass(frozen=True)
class ModelSection:
    """The dense model."""

    name: Name
    fingerprint: Name
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    num_parameters: Annotated[int, Field(ge=1, le=10**18)]
    dtype: Name
    note: Words | None = None


@with_config(CHECKED)
@dataclass(frozen=True)
class CalibrationSection:
    """The tokens that layers were chosen with and patches fitted on.

    Attributes:
        corpus: Where the text comes from.
        num_blocks: Blocks that were read …
        block_length: … and tokens in each.
        token_hash: Of all of them.
        repetitions_left_out: Tokens of long repetitions, which weren't read.
        held_out: Blocks on which nothing was fitted (`num_blocks`, `token_hash`); None: none.
        notes: What readers of the numbers must know of the texts.
        warnings: What is doubtful about the text.
    """

    corpus: Name = ""
    num_blocks: Count = 0
    block_length: Count = 0
    token_hash: Name = ""
    repetitions_left_out: Count = 0
    held_out: dict[str, Any] | None = None
    notes: list[Words] = field(default_factory=list)
    warnings: list[Words] = field(default_factory=list)


@with_config(CHECKED)
@dataclass(frozen=True)
class PruningSection:
    """Which layers were removed, and why.

    Attributes:
        method: Name of the pruner.
        removed_layers: In the order of removal.
        interfaces: Where they left a cut: `[start, end)`; `i + ½` lies between the attention and the MLP of layer i.
        num_parameters_removed: Parameters in them …
        ratio: … as a share of the dense model's.
        sees_patches: Whether the choice depends on the patch.
        scores: Why these; in another form where a plug-in recorded them.
        removed: Where sublayers are removed, all that is, in the order of removal, such as `3.attention`; a layer that
            loses both is among `removed_layers`, too.
        narrowed: Key-value heads and MLP channels that are left of layers which lost some, by layer.
    """

    method: Name
    removed_layers: Annotated[list[Layer], Field(max_length=MAX_LAYERS)]
    interfaces: Annotated[list[tuple[StreamPlace, StreamPlace]], Field(max_length=MAX_LAYERS)]
    num_parameters_removed: Count
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    sees_patches: bool = False
    scores: LayerScores | dict[str, Any] = field(default_factory=dict)
    narrowed: dict[LayerName, dict[Name, Count]] = field(default_factory=dict)
    removed: Annotated[list[UnitName], Field(max_length=2 * MAX_LAYERS)] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.removed_layers)) < len(self.removed_layers):
            raise ValueError("removed_layers names a layer twice")
        if any(start >= end for start, end in self.interfaces):
            raise ValueError("interfaces has one that ends before it starts")


@with_config(CHECKED)
@dataclass(frozen=True)
class SiteSection:
    """What a fit says of one interface; diagnostics of an operator's own stand beside these."""

    start: StreamPlace
    end: StreamPlace
    error_before: Number | None = None
    error_after: Number | None = None
    scale_mean: Number | None = None
    scale_std: Number | None = None
    scale_min: Number | None = None
    scale_max: Number | None = None

    OPTIONAL: ClassVar[tuple[str, ...]] = (
        "error_before",
        "error_after",
        "scale_mean",
        "scale_std",
        "scale_min",
        "scale_max",
    )

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError("it ends before it starts")


@with_config(CHECKED)
@dataclass(frozen=True)
class PatchSection:
    """What was fitted.

    Attributes:
        method: Name of the patch.
        num_parameters: Parameters that it adds.
        sites: One for each interface.
        comparison: What it was compared with on held-out tokens; None where nothing was.
        formats: Values of `save_format` that can hold the patched model.
        warnings: What is doubtful about the fit.
    """

    method: Name
    num_parameters: Count
    sites: Annotated[list[SiteSection], Field(max_length=MAX_LAYERS)] = field(default_factory=list)
    comparison: dict[str, Any] | None = None
    formats: list[Name] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@with_config(CHECKED)
@dataclass(frozen=True)
class PointSection:
    """A point of a loss curve; other quantities stand beside these."""

    step: Count
    loss: Number | None = None
    validation_loss: Number | None = None

    OPTIONAL: ClassVar[tuple[str, ...]] = ("loss", "validation_loss")


@with_config(CHECKED)
@dataclass(frozen=True)
class DistillationSection:
    """Settings and results of a distillation.

    Attributes:
        method: Name of the loss.
        num_parameters: Parameters that the trained operators add.
        best_step: Step whose operators were kept; 0 is the fitted patch.
        settings: Of the training, with the text's name.
        num_blocks: Sequences that were trained on …
        block_length: … tokens in each …
        token_hash: … hash of all of them …
        text_tokens: … and tokens that the text has.
        validation: Sequences that decide which step is best (`num_blocks`, `token_hash`).
        num_trained: Numbers that training moved.
        num_tokens: Tokens that were trained on, as often as each was.
        num_steps: Steps done.
        learning_rate: At the beginning; found by a range test where the setting is `auto`.
        seconds: Spent on steps and validation.
        peak_memory_bytes: Of the process, or on its GPU, at most.
        validation_loss: `first`, of the fitted patch, and `best`.
        curve: Points in order.
    """

    method: Name
    num_parameters: Count
    best_step: Count
    settings: dict[str, Any] = field(default_factory=dict)
    num_blocks: Count = 0
    block_length: Count = 0
    token_hash: Name = ""
    text_tokens: Count = 0
    validation: dict[str, Any] = field(default_factory=dict)
    num_trained: Count = 0
    num_tokens: Count = 0
    num_steps: Count = 0
    learning_rate: Number | None = None
    seconds: Number | None = None
    peak_memory_bytes: Count = 0
    validation_loss: dict[str, Number | None] = field(default_factory=dict)
    curve: list[PointSection] = field(default_factory=list)


@with_config(CHECKED)
@dataclass(frozen=True)
class CheckpointSection:
    """What was saved.

    Attributes:
        folder: In the run's folder.
        format: `plain`, `custom`, `adapter`, `gguf` or `nemotron_nas`.
        bytes: Of all its files.
        pushed_to: Address of its copy on the hub.
    """

    folder: Name
    format: Name
    bytes: Count = 0
    pushed_to: Words | None = None


@with_config(CHECKED)
@dataclass(frozen=True)
class EnvironmentSection:
    """What the run ran on."""

    packages: dict[str, Name] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    git_commit: Name | None = None
