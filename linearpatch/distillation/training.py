"""What every distillation is: training of patches, and of what else `distill.trainable` says, against the dense model.

A new one is one file here with its loss, one YAML in `conf/distill/` and one test; the rest is in `distill.py` and
`loop.py`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from linearpatch.distillation.trainable_sets import (
    LORA_LAYERS,
    SIDES,
    AllWeights,
    LastLayers,
    LoRA,
    Neighbours,
    Norms,
    PatchesAlone,
    TrainableSet,
)
from linearpatch.errors import ConfigError, ModelError, require_choice, require_number, require_range
from linearpatch.linalg.hadamard import hadamard_factors
from linearpatch.models.decoder import Decoder, LayerCall
from linearpatch.models.edit import Edit
from linearpatch.models.quantised import check_unquantised
from linearpatch.models.runner import Runner
from linearpatch.models.units import LAYER
from linearpatch.models.weight_changes import ParameterName
from linearpatch.registry import component, name_of
from linearpatch.text import counted

log = logging.getLogger(__name__)

TRAINABLE = ("patch", "lora", "norms", "neighbours", "last_layers", "all")
PATCH_FORMS = ("full", "diagonal", "low_rank")
BASES = ("hadamard", "channel")
DECAY_TOWARD = ("zero", "initial")
COUNTS = (
    "rank", "lora_rank", "lora_alpha", "radius", "last_layers", "epochs", "batch_size", "accumulation", "validations",
)  # fmt: skip
# Which settings only one choice of another reads.
READERS = {
    ("patch_form", "low_rank"): ("rank",),
    ("patch_form", "diagonal"): ("basis",),
    ("trainable", "lora"): ("lora_rank", "lora_alpha", "lora_targets", "lora_layers"),
    ("trainable", "neighbours"): ("radius", "side"),
    ("trainable", "last_layers"): ("last_layers",),
}


@dataclass(frozen=True)
class Lesson:
    """A batch for the student.

    Attributes:
        stream: The dense model's stream where the student begins, `[batch, tokens, hidden_size]`.
        calls: What each layer is given beside the stream.
        targets: What `Training.teach` made of the dense model's pass, by name.
        ids: The text, `[batch, tokens]`.
    """

    stream: Tensor
    calls: Mapping[int, LayerCall]
    targets: Mapping[str, Tensor]
    ids: Tensor


@dataclass(frozen=True)
class Keeping:
    """Targets that are kept for further epochs and runs.

    Attributes:
        key: What they depend on beside the model and the text.
        bytes_per_token: What they take on disk.
        states: Whether the stream where the student begins is kept, too: 2 bytes a token and channel.
    """

    key: Mapping[str, Any]
    bytes_per_token: int
    states: bool


@dataclass(frozen=True)
class Distillation:
    """Refines fitted patches, or leaves them."""

    version: ClassVar[int] = 1
    allows_sublayers: ClassVar[bool] = True  # whether interfaces may lie between the sublayers of a layer


@component("distill", "none")
@dataclass(frozen=True)
class NoDistillation(Distillation):
    """The patches stay as they were fitted."""


@dataclass(frozen=True)
class Training(Distillation, ABC):
    """Trains patches, and other weights where asked to, by a loss against the dense model.

    Attributes:
        trainable: What trains beside the patches: nothing (`patch`), `lora` (low-rank updates of matrices), `norms`
            (norms and biases), `neighbours` (the layers next to each interface), `last_layers` (with final norm and
            head) or `all` weights after the embeddings. A head tied to the embeddings doesn't.
        patch_form: What of a patch trains: `full` matrices, a `diagonal` (one scale in some basis), or what
            `low_rank` adds.
        basis: Of `diagonal`: `hadamard`, as in the paper's patch, or `channel`.
        rank: Of `low_rank`.
        lora_rank: Of each update.
        lora_alpha: Updates are multiplied by lora_alpha / lora_rank.
        lora_targets: Last part of the names of the matrices that get one, such as [q_proj, v_proj]; null: all.
        lora_layers: `kept`: all that stay. `after_interface`: those after the first interface, so that the student
            shares the dense model's pass up to there.
        radius: Of `neighbours`: how many layers on a side …
        side: … and on which: `both`, `before` or `after` the interface.
        last_layers: Of `last_layers`: how many.
        learning_rate: Of AdamW at the beginning; it follows a cosine. `auto`: of several, the one with the lowest
            validation loss after a few steps, which are done again.
        final_learning_rate: At the end, as a share of that at the beginning (the paper's code: a twentieth).
        weight_decay: Of AdamW.
        decay_toward: What weight decay pulls patches to: `zero` (the paper's code) or the `initial` patch; null is
            zero, for `low_rank` initial. Weights of the model are pulled to zero, LoRA's updates as well.
        max_grad_norm: Longer gradients are scaled down to this norm; null leaves them.
        epochs: Passes over the sequences.
        tokens: Train on so many tokens instead, in as many passes as that takes; null: `epochs` passes.
        minutes: Train for about so long instead: the first steps are timed, and set their number; null: as above.
        batch_size: Sequences in one forward pass.
        accumulation: Forward passes in one step. Several processes share them, so the same settings give the same
            training on any number of devices.
        on_policy: Share of the sequences whose second half the student writes itself (sampled, renewed every few
            steps), and the dense model scores. 0: none.
        validations: How many times the validation loss is measured after the first.
        recompute: Gradient checkpointing: less memory for a longer backward pass.
        sharded: Spread every layer over all processes, for models that don't fit on one device: each holds a part of
            each weight, of its gradient and moments (FSDP2).
        checkpoint_minutes: Save the training so often; null never.
        checkpoint_steps: Save it after so many steps as well; null doesn't.
    """

    trainable: str = "patch"
    patch_form: str = "full"
    basis: str = "hadamard"
    rank: int = 16
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: list[str] | None = None
    lora_layers: str = "kept"
    radius: int = 1
    side: str = "both"
    last_layers: int = 3
    learning_rate: Any = 1e-4  # a number or `auto`
    final_learning_rate: float = 0.05
    weight_decay: float = 1e-4
    decay_toward: str | None = None
    max_grad_norm: float | None = 1.0
    epochs: int = 1
    tokens: int | None = None
    minutes: float | None = None
    batch_size: int = 1
    accumulation: int = 1
    on_policy: float = 0.0
    validations: int = 10
    recompute: bool = field(default=False, metadata={"identity": False})
    sharded: bool = field(default=False, metadata={"identity": False})
    checkpoint_minutes: float | None = field(default=5.0, metadata={"identity": False})
    checkpoint_steps: int | None = field(default=None, metadata={"identity": False})

    def __post_init__(self) -> None:
        if self.trainable in PATCH_FORMS:
            raise ConfigError(
                f"distill.trainable is {self.trainable!r}, which is a form of the patch. Use "
                f"distill.patch_form={self.trainable}; distill.trainable is one of {', '.join(TRAINABLE)}."
            )
        require_choice("distill.trainable", self.trainable, TRAINABLE)
        require_choice("distill.patch_form", self.patch_form, PATCH_FORMS)
        require_choice("distill.basis", self.basis, BASES)
        require_choice("distill.lora_layers", self.lora_layers, LORA_LAYERS)
        require_choice("distill.side", self.side, SIDES)
        if self.decay_toward is not None:
            require_choice("distill.decay_toward", self.decay_toward, DECAY_TOWARD)
        if self.patch_form == "low_rank" and self.decay_toward == "zero":
            raise ConfigError(
                "distill.decay_toward is 'zero', but with distill.patch_form=low_rank the initial patch is fixed, so "
                "decay pulls to it. Leave distill.decay_toward out, or use distill.patch_form=full."
            )
        for reader, names in READERS.items():
            group, value = reader
            for name in names:
                if getattr(self, group) != value and getattr(self, name) != getattr(Training, name):
                    log.warning(
                        "distill.%s=%s has no effect with distill.%s=%s. Use distill.%s=%s, or leave distill.%s out.",
                        name, getattr(self, name), group, getattr(self, group), group, value, name,
                    )  # fmt: skip
        for name in COUNTS:
            require_range(f"distill.{name}", getattr(self, name), low=1)
        if self.lora_targets is not None and not self.lora_targets:
            raise ConfigError("distill.lora_targets is empty. Name matrices, such as [q_proj, v_proj], or use null.")
        require_number("distill.learning_rate", self.learning_rate, "auto", zero=False)
        require_range("distill.final_learning_rate", self.final_learning_rate, low=0, high=1)
        require_range("distill.on_policy", self.on_policy, low=0, high=1)
        require_range("distill.weight_decay", self.weight_decay, low=0, high=1e6)
        budgets = {name: getattr(self, name) for name in ("tokens", "minutes") if getattr(self, name) is not None}
        if len(budgets) > 1 or (budgets and self.epochs != Training.epochs):
            others = {"epochs": self.epochs, **budgets} if len(budgets) == 1 else budgets
            given = " and ".join(f"distill.{name}={value}" for name, value in others.items())
            raise ConfigError(f"{given} both say how long to train. Give one of them.")
        for name in ("tokens", "minutes", "max_grad_norm", "checkpoint_minutes", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ConfigError(f"distill.{name} is {value}. Allowed: a finite number above 0, or null for none.")

    @property
    def trainable_set(self) -> TrainableSet:
        """The weights that train beside the patches."""
        sets = {
            "patch": PatchesAlone(),
            "lora": LoRA(self.lora_rank, self.lora_alpha, self.lora_targets, self.lora_layers),
            "norms": Norms(),
            "neighbours": Neighbours(self.radius, self.side),
            "last_layers": LastLayers(self.last_layers),
            "all": AllWeights(),
        }
        return sets[self.trainable]

    @property
    def decays_to_start(self) -> bool:
        """Whether weight decay pulls to the initial patch."""
        return (self.decay_toward or ("initial" if self.patch_form == "low_rank" else "zero")) == "initial"

    @property
    def keeping(self) -> Keeping | None:
        """What is kept of the targets; None where the dense model runs in every step."""
        return None

    def num_steps(self, sequences: int, block_length: int) -> int | None:
        """How many steps there are; None where `minutes` says it.

        Args:
            sequences: In the text.
            block_length: Tokens in each.
        """
        if self.minutes is not None:
            return None
        in_step = self.batch_size * self.accumulation
        if self.tokens is not None:
            return ceil(self.tokens / (in_step * block_length))
        return ceil(sequences / in_step) * self.epochs

    def check_processes(self, count: int) -> None:
        """Reject more processes than a step has sequences, and layers to spread over one process.

        Raises:
            ConfigError: some would have nothing to do, or there is nothing to spread them over.
        """
        if self.sharded:
            self._check_sharded(count)
        sequences = self.batch_size * self.accumulation
        if sequences < count:
            raise ConfigError(
                f"{count} processes share each step, and a step has {counted(sequences, 'sequence')}. "
                f"Use distill.accumulation={count}, or fewer processes."
            )

    def _check_sharded(self, count: int) -> None:
        if count == 1:
            raise ConfigError(
                "distill.sharded=true spreads layers over several processes, and this is one. Start several, one for "
                "each GPU: accelerate launch --num_processes 4 -m linearpatch.cli run …; or use distill.sharded=false."
            )
        if self.on_policy:
            raise ConfigError(
                f"distill.on_policy={self.on_policy:g} generates text with a model that is whole, and "
                "distill.sharded=true spreads its layers. Use distill.on_policy=0, or distill.sharded=false."
            )
        if self.keeping is not None:
            raise ConfigError(
                "distill.targets=cached has each process run the dense model for files of its own, and with "
                "distill.sharded=true all run it together. Use distill.targets=online, or distill.sharded=false."
            )

    def check(self, decoder: Decoder) -> None:
        """Reject a model that this loss can't be computed for, before anything is.

        Raises:
            ConfigError: as of `check_size`, or the family lacks what is to be trained.
            ModelError: it can't be sharded as asked for.
        """
        if self.sharded:
            check_unquantised([decoder.model], "distill.sharded=true", "Use distill.sharded=false.")
        if self.sharded and decoder.model.dtype == torch.float16:
            raise ConfigError(
                "distill.sharded=true doesn't scale losses, as training in fp16 needs. Use model.dtype=bfloat16."
            )
        self.check_size(decoder.hidden_size)
        self.trainable_set.check(decoder)

    def check_size(self, hidden_size: int) -> None:
        """Reject settings that don't fit the stream's width, before a model is loaded.

        Raises:
            ConfigError: there is no Hadamard matrix of that size, or the rank exceeds it.
        """
        if self.patch_form == "low_rank" and self.rank > hidden_size:
            raise ConfigError(
                f"distill.rank is {self.rank}, but the stream has {hidden_size} channels. Allowed: 1 to {hidden_size}."
            )
        if self.patch_form == "diagonal" and self.basis == "hadamard":
            try:
                hadamard_factors(hidden_size)
            except ModelError as error:
                raise ConfigError(
                    f"There is no Hadamard matrix of the model's size, {hidden_size}, for "
                    "distill.patch_form=diagonal. Use distill.basis=channel."
                ) from error

    def check_edit(self, decoder: Decoder, edit: Edit) -> None:
        """Reject an edit of which nothing would train, before patches are fitted; as `TrainableSet.check_edit`."""
        self.trainable_set.check_edit(decoder, edit, anywhere=self.sharded)

    def sees(self, decoder: Decoder, name: ParameterName) -> bool:
        """Whether the loss depends on a weight; others stay."""
        return True

    def check_unit(self, unit: str) -> None:
        """Reject what is removed where the loss compares streams that only layers read.

        Raises:
            ConfigError: names losses that compare the model's outputs.
        """
        if unit != LAYER and not self.allows_sublayers:
            raise ConfigError(
                f"distill={name_of(self)} compares the streams that layers read, and pruner.unit={unit} leaves "
                "interfaces between the sublayers of a layer. Use distill=output_kl or distill=full_kl, which compare "
                "what the models predict."
            )

    def check_student(self, student: Runner) -> None:
        """Reject a student of which this loss would train only a part, before training.

        Raises:
            ConfigError: names what gets no gradient.
        """

    @abstractmethod
    def streams(self, student: Runner) -> set[int]:
        """The dense model's streams from which targets are made; none, where it teaches nothing."""

    @abstractmethod
    def teach(self, decoder: Decoder, streams: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Make the targets of a batch, each `[batch, …]`.

        Args:
            decoder: The dense model.
            streams: Those asked for, `[batch, tokens, hidden_size]`.
        """

    @abstractmethod
    def loss(self, student: Runner, lesson: Lesson) -> Tensor:
        """Mean loss of the student on a batch, a scalar in at least fp32 with a graph back to what is trained."""
