"""What a configuration builds, without its weights, and how that differs from a part of another model.

A blueprint has its parameters on the meta device, but real buffers and constants, as `from_pretrained` makes them
before it reads weights. What a checkpoint becomes when it is loaded can so be known before it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

SHAPE = "of shape "

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Difference:
    """One thing in which a rebuilt model isn't the pruned one.

    Attributes:
        structural: Whether weights wouldn't fit; otherwise the arithmetic differs.
        where: Name of a parameter, buffer, module or constant, in the rebuilt model.
        pruned: What it is in the pruned model.
        rebuilt: What it is in the rebuilt one.
    """

    structural: bool
    where: str
    pruned: str
    rebuilt: str

    def __str__(self) -> str:
        return f"{self.where} is {self.pruned} in the pruned model, {self.rebuilt} in the one built from it"


def blueprint_of(cls: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Build a model without memory for its weights.

    Args:
        cls: Its class.
        config: Its configuration; the model gets a copy.
    """
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = cls._from_config(copy.deepcopy(config))
    return model.eval()


def differences(
    dense: PreTrainedModel, kept: Sequence[int], rebuilt: PreTrainedModel, layers: str
) -> Iterator[Difference]:
    """In what a model built for the kept layers isn't the dense one without the others.

    Args:
        dense: Blueprint of the dense model.
        kept: Dense indices of its layers that stay, ascending.
        rebuilt: Blueprint built from the configuration of the kept layers.
        layers: Name of the list of layers in both.
    """
    old_layers, new_layers = dense.get_submodule(layers), rebuilt.get_submodule(layers)
    assert isinstance(old_layers, nn.ModuleList)
    assert isinstance(new_layers, nn.ModuleList)
    if len(new_layers) != len(kept):
        yield Difference(True, layers, f"{len(kept)} layers", f"{len(new_layers)} layers")
        return
    inside = f"{layers}."
    old_rest, new_rest = (
        {name: shape for name, shape in _shapes(model).items() if not name.startswith(inside)}
        for model in (dense, rebuilt)
    )
    yield from _compared(True, "", old_rest, new_rest)
    for new, old in enumerate(kept):
        prefix = f"{layers}.{new}"
        old_layer, other = old_layers[old], new_layers[new]
        yield from _compared(True, prefix, _shapes(old_layer), _shapes(other))
        yield from _compared(True, prefix, _classes(old_layer), _classes(other))
        yield from _constants(prefix, old_layer, other, kept, new, len(old_layers))


def _constants(
    prefix: str, layer: nn.Module, other: nn.Module, kept: Sequence[int], new: int, depth: int
) -> Iterator[Difference]:
    """Values beside the weights that a layer computes with, and that a checkpoint doesn't hold."""
    modules = dict(other.named_modules())
    position = {old: index for index, old in enumerate(kept)}
    for path, module in layer.named_modules():
        twin = modules.get(path)
        if twin is None or type(twin) is not type(module):
            continue
        values, twins = _plain(module), _plain(twin)
        for name in sorted(values.keys() | twins.keys()):
            value, its = values.get(name), twins.get(name)
            if not _follows(value, its, kept[new] - new, position, (depth, len(kept))):
                yield Difference(False, ".".join(filter(None, (prefix, path, name))), repr(value), repr(its))
        for name, buffer in module.named_buffers(recurse=False):
            peer = dict(twin.named_buffers(recurse=False)).get(name)
            if peer is None or name not in module._non_persistent_buffers_set:
                continue  # a difference of structure, or what a checkpoint holds
            if buffer.shape != peer.shape or not torch.equal(buffer, peer):
                where = ".".join(filter(None, (prefix, path, name)))
                yield Difference(False, where, "a table of its position in the dense model", "another table")


def _follows(value: Any, its: Any, shift: int, position: Mapping[int, int], depth: tuple[int, int]) -> bool:
    """Whether two constants are equal, or layer indices, or numbers of layers, as they should be in each model."""
    if isinstance(value, float) and isinstance(its, float):
        return isclose(value, its, rel_tol=1e-6)
    if value == its:
        return True
    if isinstance(value, (list, tuple)) and isinstance(its, (list, tuple)) and len(value) == depth[0]:
        return [value[old] for old in position] == list(its)
    if type(value) is int and type(its) is int:
        return value - its == shift or position.get(value) == its or (value, its) == depth
    return False


def _plain(module: nn.Module) -> dict[str, Any]:
    def is_plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(isinstance(item, _PLAIN) for item in value)
        return isinstance(value, _PLAIN)

    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and is_plain(value)
    }


def _shapes(module: nn.Module) -> dict[str, str]:
    """Shapes of what a checkpoint holds of a module, as text."""
    computed = {
        f"{path}.{name}".lstrip(".")
        for path, owner in module.named_modules()
        for name in owner._non_persistent_buffers_set
    }
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: f"{SHAPE}{list(tensor.shape)}" for name, tensor in tensors if name not in computed}


def _classes(module: nn.Module) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in module.named_modules()}


def _compared(structural: bool, prefix: str, values: Mapping[str, str], its: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(values.keys() | its.keys()):
        value, other = values.get(name, "missing"), its.get(name, "missing")
        if value != other:
            yield Difference(structural, ".".join(filter(None, (prefix, name))), value, other)
