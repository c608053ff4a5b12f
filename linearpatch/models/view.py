"""Pruned and patched models as views: their own module tree, the dense model's weights.

A view is a deep copy of the module tree in which every parameter and buffer is the dense model's own
tensor. It has its own config, hooks and `layer_idx`, so it runs, generates with a cache and saves like any
Hugging Face model, while one copy of the weights is in memory and the dense model never changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from linearpatch.models.decoder import Decoder, decoder_of, text_config
from linearpatch.models.layer_config import apply_changes, check_prunable
from linearpatch.models.narrowing import NarrowedLayer, narrow, widths_of
from linearpatch.models.patched import become_patched
from linearpatch.models.places import Place
from linearpatch.models.rebuilding import config_changes
from linearpatch.models.removal import remove_from_view
from linearpatch.models.sublayers import remember_sublayers
from linearpatch.models.weight_changes import Weights, set_weights, shared_tensors


def view_of(
    dense: Decoder,
    removed: Sequence[int],
    operators: Sequence[tuple[Place, nn.Module]] = (),
    narrowed: Sequence[NarrowedLayer] = (),
    weights: Weights = MappingProxyType({}),
    removed_parts: Mapping[int, str] = MappingProxyType({}),
) -> PreTrainedModel:
    """Make a model without some layers, with operators at their places, that shares the dense model's weights.

    Args:
        dense: The dense model; it does not change.
        removed: Dense indices of the layers to leave out; some layer must be left.
        operators: The view gets copies. Those of one place act in the order given.
        narrowed: Kept layers that lose heads and channels; their weights are copies.
        weights: Other values of weights, by their names in the dense model.
        removed_parts: Which sublayer, `attention` or `mlp`, layers that are kept lose, by dense index.

    Raises:
        ModelError: the model's configuration can't describe what would be left, or its family's sublayers can't be
            removed one without the other.
    """
    check_prunable(dense.config)
    kept = [index for index in range(dense.num_layers) if index not in set(removed)]
    if removed_parts:
        remember_sublayers(dense)
    model: PreTrainedModel = copy.deepcopy(dense.model, memo=shared_tensors(dense.model))
    view = decoder_of(model)
    apply_changes(text_config(model.config), config_changes(dense, kept), len(kept))

    layers = nn.ModuleList([view.layers[index] for index in kept])
    position = {old: new for new, old in enumerate(kept)}
    slots = []
    for layer, module, attribute in _indices(view.layers):
        if layer in position:
            module.__dict__[attribute] += position[layer] - layer
            slots.append((module, attribute))
    owner, _, name = view.parts.layers.rpartition(".")
    setattr(model.get_submodule(owner), name, layers)
    if getattr(model, "hf_device_map", None):
        model.hf_device_map = _renumber(model.hf_device_map, view.parts.layers, kept)

    pruned = decoder_of(model)
    removed_modules = None
    if removed_parts:
        names = {id(module): name for name, module in model.named_modules()}
        by_name = {names[id(module)]: attribute for module, attribute in slots}
        removed_modules = remove_from_view(dense, pruned, kept, removed_parts, by_name)
    set_weights(pruned, [*kept, dense.num_layers], weights)
    entries = [place.add_to(pruned, kept, operator) for place, operator in operators]
    sizes: dict[str, tuple[int, int]] = {}
    for narrowed_layer in narrowed:
        sizes |= narrow(
            pruned, kept.index(narrowed_layer.layer), widths_of(dense, narrowed_layer.layer), narrowed_layer
        )
    if (attached := [entry for entry in entries if entry is not None]) or sizes or removed_modules:
        become_patched(model, attached, sizes, removed_modules)
    return model.eval()


def _indices(layers: nn.ModuleList) -> Iterator[tuple[int, nn.Module, str]]:
    """Where layers keep their own index, whatever they call it: layer, module within it, attribute.

    It is a number that grows by one from each layer to the next, in all modules of a class that have it. Where only
    one module of a class is in all layers (the one attention layer of a hybrid), its name must say so, too.
    """
    owners: dict[tuple[type, str], list[tuple[int, nn.Module]]] = {}
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name, value in vars(module).items():
                if type(value) is int:
                    owners.setdefault((type(module), name), []).append((index, module))
    for (_, name), indices in owners.items():
        offsets = {vars(module)[name] - index for index, module in indices}
        several = len({index for index, _ in indices}) > 1
        if len(offsets) == 1 and (several or (name.startswith("layer_") and offsets == {0})):
            yield from ((index, module, name) for index, module in indices)


def _renumber(device_map: dict[str, Any], path: str, kept: Sequence[int]) -> dict[str, Any]:
    """Where accelerate put each module, by the names that modules have in the view."""
    position = {f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(kept)}
    renumbered: dict[str, Any] = {}
    for name, device in device_map.items():
        match = re.fullmatch(rf"({re.escape(path)}\.\d+)(\..*)?", name)
        if match is None:
            renumbered[name] = device
        elif match[1] in position:
            renumbered[position[match[1]] + (match[2] or "")] = device
    return renumbered
