"""Sublayers removed from layers that stay: what becomes of a layer's modules, and where the others keep their caches.

In place of the modules of a removed sublayer stand placeholders (`RemovedModule`), which have no weights and run
nothing. A removed attention keeps no keys and values. A cache of transformers has a slot for each layer all the same,
of the kind that the configuration names for that layer, and how many tokens it holds is read from the first slot
(masks: the first of a kind). So those attentions that are left take the first slots of their kind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from linearpatch.models.decoder import Decoder
from linearpatch.models.modeling_linearpatch import RemovedModule, remove_sublayers
from linearpatch.models.quantised import num_parameters
from linearpatch.models.sublayers import ATTENTION, check_separable, forget_sublayer
from linearpatch.models.weight_changes import shared_tensors

FULL = "full_attention"
WITHOUT_A_LENGTH = ("linear_attention", "conv")  # kinds of slots that hold a state, which is asked of the last …
BOTH = "hybrid"  # … and how the names of those begin that hold keys, values and a state

# By layer of a dense model: copies of it without a sublayer, which share its weights.
_copies: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()


def num_parameters_of(decoder: Decoder, index: int, part: str) -> int:
    """Parameters of a sublayer with its norms."""
    return num_parameters(_child(decoder, index, name) for name in own_names(decoder, index, part))


def own_names(decoder: Decoder, index: int, part: str) -> list[str]:
    """Children of a layer that run for one sublayer alone.

    Raises:
        ModelError: the family's sublayers can't be separated.
    """
    return list(check_separable(decoder, index, part).children)


def _child(decoder: Decoder, index: int, name: str) -> nn.Module:
    return decoder.layers[index].get_submodule(name)


def without_sublayers(decoder: Decoder, removed: Mapping[int, str]) -> Decoder:
    """The same decoder with some layers running without a sublayer; unchanged weights are shared, gradients pass.

    Args:
        decoder: The dense model, or its layers with changed weights; it doesn't change.
        removed: `attention` or `mlp`, by layer.

    Raises:
        ModelError: the family's sublayers can't be separated.
    """
    if not removed:
        return decoder
    layers = list(decoder.layers)
    for index, part in removed.items():
        layers[index] = _without(decoder, index, part)
    return replace(decoder, layers=nn.ModuleList(layers))


def _without(decoder: Decoder, index: int, part: str) -> nn.Module:
    layer = decoder.layers[index]
    kept = _copies.setdefault(layer, {})
    if part not in kept:
        roles = check_separable(decoder, index, part)
        own = copy.deepcopy(layer, memo=shared_tensors(layer))
        for name, entries in roles.children.items():
            setattr(own, name, RemovedModule(name == roles.adding, entries))
        forget_sublayer(own, part)
        kept[part] = own
    return kept[part]


def remove_from_view(
    dense: Decoder, view: Decoder, kept: Sequence[int], removed: Mapping[int, str], slots: Mapping[str, str]
) -> dict[str, Any]:
    """Remove sublayers from layers of a view.

    Args:
        dense: The dense model.
        view: It without some layers, with modules of its own.
        kept: Dense indices of the view's layers.
        removed: `attention` or `mlp`, by dense index of a layer.
        slots: Names of modules of layers that keep something in a cache, with the attribute that says where.

    Returns:
        What `remove_sublayers` does to a model of that shape.

    Raises:
        ModelError: the family's sublayers can't be separated.
    """
    modules = []
    for index, part in removed.items():
        roles = check_separable(dense, index, part)
        position = kept.index(index)
        path = f"{view.parts.layers}.{position}"
        modules += [
            {"module": f"{path}.{name}", "adds": name == roles.adding, "entries": entries}
            for name, entries in roles.children.items()
        ]
        forget_sublayer(view.layers[position], part)
    lost = {kept.index(index) for index, part in removed.items() if part == ATTENTION}
    prefixes = tuple(f"{entry['module']}." for entry in modules)
    caches = [
        {"module": name, "attribute": attribute, "value": value}
        for position, value in _slots(view.config, len(kept), lost).items()
        for name, attribute in slots.items()
        if name.startswith(f"{view.parts.layers}.{position}.") and not f"{name}.".startswith(prefixes)
    ]
    content = {"modules": modules, "caches": caches}
    remove_sublayers(view.model, content)
    return content


def _slots(config: Any, num_layers: int, lost: set[int]) -> dict[int, int]:
    """Where the attention of each layer keeps its keys and values, where that is another slot than the layer's own.

    Args:
        config: Of the view's decoder; kinds of layers without attention change where no other would use the first slot.
        num_layers: Of the view.
        lost: Positions of layers without attention.
    """
    if not lost:
        return {}
    kinds = list(getattr(config, "layer_types", None) or [FULL] * num_layers)
    left = [position for position in range(num_layers) if position not in lost]
    counted = [position for position in left if kinds[position] not in WITHOUT_A_LENGTH]
    first = next((kind for kind in kinds if kind not in WITHOUT_A_LENGTH), None)
    if counted and first not in {kinds[position] for position in counted}:
        # Nothing reads the kind of a layer without attention but the cache.
        kinds = [kinds[counted[0]] if kind == first else kind for kind in kinds]
        config.layer_types = kinds
    moved: dict[int, int] = {}
    for kind in dict.fromkeys(kinds):
        slots = [position for position in range(num_layers) if kinds[position] == kind]
        users = [position for position in left if kinds[position] == kind]
        if users:
            taken = slots[-len(users) :] if kind in WITHOUT_A_LENGTH else slots[: len(users)]
            if kind.startswith(BOTH) and len(users) > 1:
                taken[-1] = slots[-1]
            moved |= {user: slot for user, slot in zip(users, taken, strict=True) if user != slot}
    return moved
