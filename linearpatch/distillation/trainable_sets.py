"""What of the student is trained beside its patches: one choice of weights each.

A set names weights of what is kept, and makes the changes that begin as the dense model's weights and train. All else
follows from the edit that holds them: where the student begins, what it runs, what is saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from linearpatch.distillation.chunks import at_least_fp32
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.offload import read_parameter
from linearpatch.models.quantised import is_packed
from linearpatch.models.removal import own_names
from linearpatch.models.sublayers import MATRICES
from linearpatch.models.weight_changes import LowRankUpdate, NewWeight, ParameterName, WeightChange, Weights
from linearpatch.text import layer_list

SIDES = ("both", "before", "after")
LORA_LAYERS = ("kept", "after_interface")


@dataclass(frozen=True)
class TrainableSet(ABC):
    """Weights of the student that train beside its patches."""

    @abstractmethod
    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """Which weights of the dense model these are, none of a removed layer."""

    def check(self, decoder: Decoder) -> None:  # noqa: B027 - most sets fit any model
        """Reject a model that has no such weights, before anything is computed."""

    def check_edit(self, decoder: Decoder, edit: Edit, *, anywhere: bool = False) -> None:
        """Reject an edit of which nothing would train, before patches are fitted.

        Args:
            decoder: The dense model.
            edit: What is removed.
            anywhere: Whether weights that train may be kept in CPU memory or on disk (`distill.sharded`).

        Raises:
            ConfigError: there is nothing of the kind in what is kept, or it can't be trained.
            ModelError: layers share a weight.
        """
        names = self._left(decoder, edit)
        if not names:
            raise ConfigError(
                f"{self} has no weights to train in {edit.summary()}. Use another distill.trainable, such as lora "
                "with distill.lora_layers=kept."
            )
        _check_weights(decoder, edit, names, anywhere=anywhere)

    def _left(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """Which weights these are, without those of removed sublayers."""
        lost = {layer: own_names(decoder, layer, part) for layer, part in edit.removed_parts.items()}
        return [
            name for name in self.names(decoder, edit) if name.name.partition(".")[0] not in lost.get(name.layer, ())
        ]

    def weights(self, decoder: Decoder, edit: Edit, seed: int, *, anywhere: bool = False) -> Weights:
        """All changed weights of the student at its beginning: those that train, and others of the edit, which stay.

        Args:
            decoder: The dense model.
            edit: What is removed, and the operators.
            seed: Of what begins at random.
            anywhere: As of `check_edit`; the changes of such weights begin in CPU memory.

        Raises:
            ConfigError: as of `check_edit`.
            ModelError: as well.
        """
        self.check_edit(decoder, edit, anywhere=anywhere)
        generator = torch.Generator().manual_seed(seed)
        changes: dict[ParameterName, WeightChange] = {}
        for name in self._left(decoder, edit):
            weight = parameter_of(decoder, name).detach()
            if name in edit.weights:
                weight = edit.weights[name].value(_read(decoder, name))
            changes[name] = self.change(decoder, name, weight, generator).requires_grad_(True)
        return {**edit.weights, **changes}

    def change(self, decoder: Decoder, name: ParameterName, weight: Tensor, generator: torch.Generator) -> WeightChange:
        """The change of one weight at its beginning: a copy in fp32 (fp64 for fp64) that trains as a whole.

        Args:
            decoder: The dense model.
            name: Of the weight.
            weight: Its value in the edited model; on the meta device where that is the dense model's, kept elsewhere.
            generator: Of what begins at random.
        """
        weight = _read(decoder, name) if weight.is_meta else weight
        return NewWeight(weight.to(at_least_fp32(weight), copy=True))


@dataclass(frozen=True)
class PatchesAlone(TrainableSet):
    """No weight: the patches alone train."""

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """None."""
        return []

    def check_edit(self, decoder: Decoder, edit: Edit, *, anywhere: bool = False) -> None:
        """Whether there are patches isn't known yet."""

    def weights(self, decoder: Decoder, edit: Edit, seed: int, *, anywhere: bool = False) -> Weights:
        """None, if there are patches.

        Raises:
            ConfigError: there are none.
        """
        if not edit.operators:
            raise ConfigError(
                "There is no patch to distil. Use another patch than none, or a distill.trainable that trains weights "
                "of the model, such as lora."
            )
        return edit.weights


@dataclass(frozen=True)
class Norms(TrainableSet):
    """Norms and biases: every vector among the weights of the kept layers, and the final norm."""

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """Weights with one dimension."""
        names = [*_of_layers(decoder, kept_layers(decoder, edit)), *_final_norm(decoder)]
        return [name for name in names if parameter_of(decoder, name).dim() == 1]


@dataclass(frozen=True)
class Neighbours(TrainableSet):
    """The kept layers next to each interface.

    Attributes:
        radius: How many on a side.
        side: `both`, or only those `before` or `after` the interface.
    """

    radius: int = 1
    side: str = "both"

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """All weights of these layers."""
        kept = kept_layers(decoder, edit)
        near: set[int] = set()
        for interface in edit.interfaces:
            if self.side != "after":
                near.update([layer for layer in kept if layer < interface.start][-self.radius :])
            if self.side != "before":
                near.update([layer for layer in kept if layer >= interface.end][: self.radius])
        return _of_layers(decoder, sorted(near))


@dataclass(frozen=True)
class LastLayers(TrainableSet):
    """The last kept layers, the final norm and the head (Lu et al., "Reassessing Layer Pruning in LLMs").

    Attributes:
        count: How many layers.
    """

    count: int = 3

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """All weights of these layers and what follows them; a head tied to the embeddings stays."""
        last = kept_layers(decoder, edit)[-self.count :]
        return [*_of_layers(decoder, last), *_final_norm(decoder), *_head(decoder)]


@dataclass(frozen=True)
class AllWeights(TrainableSet):
    """All weights after the embeddings."""

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """Those of the kept layers, the final norm and the head; a head tied to the embeddings stays."""
        return [*_of_layers(decoder, kept_layers(decoder, edit)), *_final_norm(decoder), *_head(decoder)]


@dataclass(frozen=True)
class LoRA(TrainableSet):
    """Low-rank updates of the matrices of layers (Hu et al., 2021), as peft adds them.

    Attributes:
        rank: Of each update.
        alpha: Updates are multiplied by alpha / rank.
        targets: Last part of the matrices' names, such as q_proj; None: all matrices.
        layers: `kept`: all kept layers. `after_interface`: those after the first interface.
    """

    rank: int = 16
    alpha: int = 32
    targets: Sequence[str] | None = None
    layers: str = "kept"

    def check(self, decoder: Decoder) -> None:
        """Reject targets that the family lacks.

        Raises:
            ConfigError: names those it has.
        """
        has = {_last(name) for layer in range(decoder.num_layers) for name, _ in _matrices(decoder.layers[layer])}
        unknown = sorted(set(self.targets or ()) - has)
        if unknown or not has:
            raise ConfigError(
                f"distill.lora_targets is {list(self.targets or [])}, but the layers of "
                f"{type(decoder.model).__name__} have no matrix {', '.join(unknown)}. Allowed: some of "
                f"{', '.join(sorted(has))}, or null for all."
            )

    def names(self, decoder: Decoder, edit: Edit) -> list[ParameterName]:
        """The weights of these matrices."""
        layers = kept_layers(decoder, edit)
        if self.layers == "after_interface":
            first = edit.interfaces[0].end if edit.interfaces else 0
            layers = [layer for layer in layers if layer >= first]
        names = [
            ParameterName(layer, f"{name}.weight")
            for layer in layers
            for name, _ in _matrices(decoder.layers[layer])
            if self.targets is None or _last(name) in self.targets
        ]
        if changed := [name for name in names if name in edit.weights]:
            raise ConfigError(
                f"{changed[0].name} of layer {changed[0].layer} was already changed, and a LoRA adapter updates "
                "weights of the dense model. Exclude it by distill.lora_layers or lora_targets, or use another "
                "distill.trainable."
            )
        return names

    def change(
        self, decoder: Decoder, name: ParameterName, weight: Tensor, generator: torch.Generator
    ) -> LowRankUpdate:
        """An update by zero: the matrix that reads is random as in peft, the one that writes is zero."""
        module, _ = name.owner(decoder)
        transposed = isinstance(module, Conv1D)
        outputs, inputs = reversed(weight.shape) if transposed else weight.shape
        bound = inputs**-0.5
        down = (2 * torch.rand(self.rank, inputs, generator=generator) - 1) * bound
        up = torch.zeros(outputs, self.rank)
        device = torch.device("cpu") if weight.is_meta else weight.device
        down, up = (matrix.to(device, at_least_fp32(weight)) for matrix in (down, up))
        return LowRankUpdate(down, up, self.alpha / self.rank, transposed=transposed)


def kept_layers(decoder: Decoder, edit: Edit) -> list[int]:
    """Dense indices of the layers that stay."""
    return [layer for layer in range(decoder.num_layers) if layer not in set(edit.removed_layers)]


def parameter_of(decoder: Decoder, name: ParameterName) -> nn.Parameter:
    """The dense model's parameter of a name."""
    module, leaf = name.owner(decoder)
    return module.get_parameter(leaf)


def _read(decoder: Decoder, name: ParameterName) -> Tensor:
    """The dense model's value of it, wherever that is kept."""
    return read_parameter(*name.owner(decoder)).detach()


def _of_layers(decoder: Decoder, layers: Sequence[int]) -> list[ParameterName]:
    return [ParameterName(layer, name) for layer in layers for name, _ in decoder.layers[layer].named_parameters()]


def _final_norm(decoder: Decoder) -> list[ParameterName]:
    names = (name for name, _ in decoder.final_norm.named_parameters())
    return [ParameterName(decoder.num_layers, f"final_norm.{name}") for name in names]


def _head(decoder: Decoder) -> list[ParameterName]:
    """The head's weights, unless they are the embeddings': those would change what all layers read."""
    embeddings = {id(parameter) for parameter in decoder.model.get_input_embeddings().parameters()}
    named = list(decoder.head.named_parameters())
    ties = bool(getattr(decoder.config, "tie_word_embeddings", False))
    if any(id(parameter) in embeddings or (parameter.is_meta and ties) for _, parameter in named):
        return []
    return [ParameterName(decoder.num_layers, f"head.{name}") for name, _ in named]


def _matrices(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in layer.named_modules() if isinstance(module, MATRICES))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _check_weights(decoder: Decoder, edit: Edit, names: Sequence[ParameterName], *, anywhere: bool) -> None:
    owners: dict[int, set[int]] = {}
    for layer in kept_layers(decoder, edit):
        for weight in decoder.layers[layer].parameters():
            owners.setdefault(id(weight), set()).add(layer)
    for name in names:
        weight = parameter_of(decoder, name)
        what = name.name if name.layer == decoder.num_layers else f"{name.name} of layer {name.layer}"
        if is_packed(weight):
            raise ConfigError(
                f"{what} is quantised ({weight.dtype}), so it can't be trained. Load the "
                "model without quantisation, or use distill.trainable=patch."
            )
        if weight.is_meta and not anywhere:
            raise ConfigError(
                f"{what} is kept in CPU memory or on disk (model.device_map), so it can't be trained. "
                "Use distill.trainable=patch, a model.device_map by which it stays on a device, or several processes "
                "with distill.sharded=true."
            )
        sharing = owners.get(id(weight), set())
        if len(sharing) > 1:
            raise ModelError(
                f"Layers {layer_list(sharing)} of {type(decoder.model).__name__} share the weight {name.name}, which "
                "can't change in one of them alone. Use distill.trainable=patch."
            )
