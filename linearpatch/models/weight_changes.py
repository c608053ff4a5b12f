"""Weights that an edit changes: which they are, and what becomes of them.

A changed weight is a module with parameters, so that the same value is trained, run, stored and put into a view.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers.pytorch_utils import Conv1D

from linearpatch.models.decoder import Decoder
from linearpatch.models.gradients import gradients_for
from linearpatch.models.offload import read_parameter, replace_parameter
from linearpatch.models.quantised import is_quantised
from linearpatch.models.sublayers import remember_sublayers

ADAPTER = "default"  # peft's name for the only one

CHANGES: dict[str, type[WeightChange]] = {}


@dataclass(frozen=True, order=True)
class ParameterName:
    """A parameter of the dense model.

    Attributes:
        layer: Dense index of its layer; the number of layers for the final norm and the head.
        name: In its layer; after the layers it begins with `final_norm` or `head`.
    """

    layer: int
    name: str

    def owner(self, decoder: Decoder, position: int | None = None) -> tuple[nn.Module, str]:
        """The module that holds it, and its name there.

        Args:
            decoder: The dense model, or one made of it.
            position: Of the layer in that model, where it has lost layers.
        """
        path, _, leaf = self.name.rpartition(".")
        position = self.layer if position is None else position
        if position < decoder.num_layers:
            return decoder.layers[position].get_submodule(path), leaf
        role, _, inside = path.partition(".")
        return {"final_norm": decoder.final_norm, "head": decoder.head}[role].get_submodule(inside), leaf


class WeightChange(nn.Module, ABC):
    """What becomes of one weight."""

    kind: ClassVar[str]  # its name in specs

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        CHANGES[cls.kind] = cls

    @abstractmethod
    def value(self, dense: Tensor) -> Tensor:
        """The changed weight.

        Args:
            dense: The dense model's.
        """

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values of which the class's `from_spec` makes a change of the same form, with zeros in it."""

    def trained(self) -> WeightChange:
        """A copy of it as it is now, which doesn't train."""
        return copy.deepcopy(self).requires_grad_(False)


class NewWeight(WeightChange):
    """A weight with another value.

    Args:
        weight: The value, of the weight's shape.
    """

    kind = "new"

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def value(self, dense: Tensor) -> Tensor:
        """It itself."""
        return self.weight.detach()

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"shape": list(self.weight.shape)}

    @classmethod
    def from_spec(cls, shape: list[int]) -> NewWeight:
        """Zeros."""
        return cls(torch.zeros(shape))


class LowRankUpdate(WeightChange):
    """W + scale · U D, a LoRA adapter.

    Args:
        down: D, `[rank, inputs]`.
        up: U, `[outputs, rank]`.
        scale: α / rank.
        transposed: Whether the weight is stored as `[inputs, outputs]` (GPT-2).
    """

    kind = "low_rank"

    def __init__(self, down: Tensor, up: Tensor, scale: float, *, transposed: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)
        self.scale, self.transposed = scale, transposed

    @torch.no_grad()
    def value(self, dense: Tensor) -> Tensor:
        """The sum, in the update's precision."""
        added = self.scale * (self.up @ self.down)
        return dense.to(added) + (added.T if self.transposed else added)

    def spec(self) -> dict[str, Any]:
        """Sizes, scale and orientation."""
        (rank, inputs), outputs = self.down.shape, len(self.up)
        sizes = {"rank": rank, "inputs": inputs, "outputs": outputs}
        return {**sizes, "scale": self.scale, "transposed": self.transposed}

    @classmethod
    def from_spec(cls, rank: int, inputs: int, outputs: int, scale: float, transposed: bool) -> LowRankUpdate:
        """An update by zero."""
        return cls(torch.zeros(rank, inputs), torch.zeros(outputs, rank), scale, transposed=transposed)


Weights = Mapping[ParameterName, WeightChange]


def describe_weights(weights: Weights) -> list[dict[str, Any]]:
    """Plain values for manifests and cached results; `weights_from` reads them."""
    return [
        {"layer": name.layer, "name": name.name, "change": change.kind, **change.spec()}
        for name, change in weights.items()
    ]


def unfilled_weights(entries: Sequence[Mapping[str, Any]]) -> dict[ParameterName, WeightChange]:
    """Changes of the form that plain values describe, with zeros in them.

    Raises:
        ValueError: there is no such kind of change.
    """
    weights: dict[ParameterName, WeightChange] = {}
    for entry in entries:
        spec = {name: value for name, value in entry.items() if name not in ("layer", "name", "change")}
        if entry["change"] not in CHANGES:
            raise ValueError(f"change {entry['change']!r}; known: {', '.join(sorted(CHANGES))}")
        cls: Any = CHANGES[entry["change"]]
        weights[ParameterName(entry["layer"], entry["name"])] = cls.from_spec(**spec)
    return weights


def weights_from(entries: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    """The changed weights that plain values describe.

    Args:
        entries: Of `describe_weights`.
        tensors: Those of `tensors_of` among others.
        prefix: Of their names.

    Raises:
        ValueError: there is no such kind of change.
    """
    weights = unfilled_weights(entries)
    for index, change in enumerate(weights.values()):
        own = {name: tensors[f"{prefix}{index}.{name}"] for name in change.state_dict()}
        change.load_state_dict(own, assign=True)
        change.requires_grad_(False)
    return weights


def tensors_of(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Their parameters by name, as `weights_from` finds them."""
    return {
        f"{prefix}{index}.{name}": values.detach()
        for index, change in enumerate(weights.values())
        for name, values in change.state_dict().items()
    }


@torch.no_grad()
def set_weights(view: Decoder, kept: Sequence[int], weights: Weights) -> None:
    """Give a view the changed weights of what it has; the dense model keeps its own.

    Args:
        view: The dense model without some layers.
        kept: Dense indices of its layers, followed by the dense model's number of layers.
        weights: By their names in the dense model.
    """
    positions = {layer: position for position, layer in enumerate(kept)}
    for name, change in weights.items():
        if name.layer in positions:
            module, leaf = name.owner(view, positions[name.layer])
            replace_parameter(module, leaf, change.value(read_parameter(module, leaf)))


def changed_decoder(dense: Decoder, weights: Weights) -> Decoder:
    """The dense model's parts with changed weights: layers, final norm and head of its own where any is changed.

    Unchanged weights are the dense model's. Gradients reach the changes, whose parameters may be in higher precision
    than the model: they are cast where they are used.

    Args:
        dense: The dense model; it doesn't change.
        weights: By their names in it.
    """
    if not weights:
        return dense
    remember_sublayers(dense)
    parts: dict[int | str, dict[str, WeightChange]] = {}
    for name, change in weights.items():
        role, _, inside = name.name.partition(".")
        within = name.layer < dense.num_layers
        parts.setdefault(name.layer if within else role, {})[name.name if within else inside] = change
    own: dict[int | str, nn.Module] = {}
    for part, changes in parts.items():
        original = dense.layers[part] if isinstance(part, int) else getattr(dense, part)
        own[part] = copy.deepcopy(original, memo=shared_tensors(original))
        _change(own[part], changes)
    layers = nn.ModuleList([own.get(index, layer) for index, layer in enumerate(dense.layers)])
    norm, head = own.get("final_norm", dense.final_norm), own.get("head", dense.head)
    return replace(dense, layers=layers, final_norm=norm, head=head)


def shared_tensors(module: nn.Module) -> dict[int, Any]:
    """A deepcopy memo that answers every parameter and buffer with itself."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        if is_quantised(part):  # codes and scales beside the parameters, which kernels read
            kept = [value for name, value in vars(part).items() if name == "state" or isinstance(value, Tensor)]
            memo |= {id(value): value for value in kept}
        # weights that accelerate keeps in CPU memory or on disk
        weights_map = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        if weights_map is not None:
            memo[id(weights_map)] = weights_map
    return memo


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, values: Tensor) -> Tensor:
        return values.to(self.dtype)


def _change(module: nn.Module, changes: Mapping[str, WeightChange]) -> None:
    """Make a module of its own compute with changed weights, given by their names in it."""
    updates = {}
    for name, change in changes.items():
        path, _, leaf = name.rpartition(".")
        if isinstance(change, LowRankUpdate):
            updates[path] = change
            continue
        assert isinstance(change, NewWeight)
        owner = module.get_submodule(path)
        dtype = owner.get_parameter(leaf).dtype
        owner.register_parameter(leaf, change.weight)
        if change.weight.dtype != dtype:
            register_parametrization(owner, leaf, _Cast(dtype), unsafe=True)  # it changes the dtype, as it should
    if updates:
        _adapt(module, updates)


def _adapt(module: nn.Module, updates: Mapping[str, LowRankUpdate]) -> None:
    """Put peft's LoRA layers around some matrices, with the updates as their parameters."""
    from peft import LoraConfig, inject_adapter_in_model  # which takes seconds to import

    sizes = {update.down.shape[0] for update in updates.values()}
    (rank,) = sizes
    transposed = any(isinstance(module.get_submodule(path), Conv1D) for path in updates)
    config = LoraConfig(r=rank, target_modules=list(updates), lora_dropout=0.0, fan_in_fan_out=transposed)
    with gradients_for(list(module.parameters()), False):  # peft freezes what isn't its own
        inject_adapter_in_model(config, module, ADAPTER)
    for path, update in updates.items():
        lora: Any = module.get_submodule(path)
        lora.lora_A[ADAPTER].weight, lora.lora_B[ADAPTER].weight = update.down, update.up
        lora.scaling[ADAPTER] = update.scale
    module.eval()
