"""Pruned and patched models as views: their own module tree, the dense model's weights.

A view is a deep copy of the module tree in which every parameter and buffer is the dense model's own
tensor. It has its own config, hooks and `layer_idx`, so it runs, generates with a cache and saves like any
Hugging Face model, while one copy of the weights is in memory and the dense model never changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from linearpatch.errors import ConfigError
from linearpatch.models.decoder import Decoder, decoder_of, text_config
from linearpatch.models.layer_config import apply_changes, check_prunable
from linearpatch.models.modeling_linearpatch import attach
from linearpatch.models.patched import become_patched, entry_of
from linearpatch.models.rebuilding import config_changes
from linearpatch.models.writers import add_to_mlp_weight, mlp_writer

BRANCHES = ("stream", "mlp", "mlp_weight")


@dataclass(frozen=True)
class Interface:
    """A gap: layers `[start, end)` were removed, layer `end` (or the final norm) now reads stream `start`."""

    start: int
    end: int


@dataclass(frozen=True)
class Site:
    """Where one patch sits and what it stands for.

    Attributes:
        start: The patch maps stream `start` of the dense model …
        end: … to stream `end`.
        reader: Dense index of the layer on whose input it sits; the number of layers for the final norm.
        branch: `stream`; `mlp`: it sits on the output of the MLP of layer `start − 1` instead, and maps only
            what that adds to the stream; or `mlp_weight`: its matrix, from what the last product of that MLP
            reads to the stream, is added to that product's weight.
    """

    start: int
    end: int
    reader: int
    branch: str = "stream"


def interfaces_of(removed: Sequence[int]) -> list[Interface]:
    """The gaps that removed layers leave, in order; touching removals form one.

    >>> interfaces_of([5, 3, 4, 9])
    [Interface(start=3, end=6), Interface(start=9, end=10)]
    """
    gaps: list[Interface] = []
    for layer in sorted(removed):
        if gaps and gaps[-1].end == layer:
            gaps[-1] = Interface(gaps[-1].start, layer + 1)
        else:
            gaps.append(Interface(layer, layer + 1))
    return gaps


def view_of(dense: Decoder, removed: Sequence[int], patches: Sequence[tuple[Site, nn.Module]] = ()) -> PreTrainedModel:
    """Make a model without some layers, patched where asked, that shares the dense model's weights.

    Args:
        dense: The dense model; it does not change.
        removed: Dense indices of the layers to leave out.
        patches: Modules from stream to stream, `[…, hidden_size]` to the same shape. Those of one reader
            apply in the order given.

    Raises:
        ConfigError: a layer doesn't exist, is named twice, or none would be left.
        ModelError: the model's configuration can't describe what would be left.
    """
    _check_removed(removed, dense.num_layers)
    check_prunable(dense.config)
    kept = [index for index in range(dense.num_layers) if index not in set(removed)]
    model: PreTrainedModel = copy.deepcopy(dense.model, memo=_shared(dense.model))
    view = decoder_of(model)
    apply_changes(text_config(model.config), config_changes(dense, kept), len(kept))

    layers = nn.ModuleList([view.layers[index] for index in kept])
    position = {old: new for new, old in enumerate(kept)}
    for layer, module, attribute in _indices(view.layers):
        if layer in position:
            module.__dict__[attribute] += position[layer] - layer
    owner, _, name = view.parts.layers.rpartition(".")
    setattr(model.get_submodule(owner), name, layers)
    if getattr(model, "hf_device_map", None):
        model.hf_device_map = _renumber(model.hf_device_map, view.parts.layers, kept)

    entries = []
    for site, patch in patches:
        if site.branch == "mlp_weight":
            add_to_mlp_weight(layers[kept.index(site.start - 1)], patch)
        else:
            entries.append(_insert(patch, site, view, layers, kept))
    if entries:
        become_patched(model, entries)
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
    for (_, name), found in owners.items():
        offsets = {vars(module)[name] - index for index, module in found}
        several = len({index for index, _ in found}) > 1
        if len(offsets) == 1 and (several or (name.startswith("layer_") and offsets == {0})):
            yield from ((index, module, name) for index, module in found)


def _insert(patch: nn.Module, site: Site, view: Decoder, layers: nn.ModuleList, kept: Sequence[int]) -> dict[str, Any]:
    """Attach a copy of a patch at its site; the answer is its entry in the view's configuration."""
    if site.branch == "mlp":
        module, side = mlp_writer(layers[kept.index(site.start - 1)]), "output"
    else:
        module, side = view.final_norm if site.reader == view.num_layers else layers[kept.index(site.reader)], "input"
    name = next(name for name, candidate in view.model.named_modules() if candidate is module)
    attach(module, copy.deepcopy(patch), side)
    return entry_of(patch, name, side)


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


def _shared(model: nn.Module) -> dict[int, Any]:
    """A deepcopy memo that answers every parameter and buffer with itself."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():  # weights that accelerate keeps in CPU memory or on disk
        weights_map = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if weights_map is not None:
            memo[id(weights_map)] = weights_map
    return memo


def _check_removed(removed: Sequence[int], num_layers: int) -> None:
    unknown = [layer for layer in removed if not 0 <= layer < num_layers]
    if unknown:
        raise ConfigError(f"Layers {unknown} don't exist. Allowed: 0 to {num_layers - 1}.")
    if len(set(removed)) != len(removed):
        raise ConfigError(f"Layers {list(removed)} to remove name a layer twice. Name each once.")
    if len(removed) >= num_layers:
        raise ConfigError(f"All {num_layers} layers would be removed. Keep at least one.")
