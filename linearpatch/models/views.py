"""Pruned and patched models as views: their own module tree, the dense model's weights.

A view is a deep copy of the module tree in which every parameter and buffer is the dense model's own
tensor. It has its own config, hooks and `layer_idx`, so it runs, generates with a cache and saves like any
Hugging Face model, while one copy of the weights is in memory and the dense model never changes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.errors import ConfigError, StorageError
from linearpatch.models.decoder import Decoder, decoder_of, join_call, split_call, text_config
from linearpatch.models.layer_config import remove_from_config


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
    """

    start: int
    end: int
    reader: int


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
    kept = [index for index in range(dense.num_layers) if index not in set(removed)]
    model: PreTrainedModel = copy.deepcopy(dense.model, memo=_shared(dense.model))
    view = decoder_of(model)
    remove_from_config(text_config(model.config), kept, dense.num_layers)

    layers = nn.ModuleList([view.layers[index] for index in kept])
    for new_index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.__dict__["layer_idx"] = new_index
    name = next(name for name, child in view.body.named_children() if child is view.layers)
    setattr(view.body, name, layers)
    if getattr(model, "hf_device_map", None):
        model.hf_device_map = {}

    for site, patch in patches:
        reader = view.final_norm if site.reader == dense.num_layers else layers[kept.index(site.reader)]
        attach(reader, patch)
    if patches:
        model.save_pretrained = _refuse_save
    return model.eval()


def attach(reader: nn.Module, patch: nn.Module) -> None:
    """Put a patch on the input of a layer or norm, as a submodule that moves and casts with it.

    The patch works where its reader works: with a model spread over devices the stream arrives from the
    layer before, so it is moved first. Hooks run before accelerate aligns devices, which then finds
    nothing left to do.
    """
    anchor = next((p for p in reader.parameters() if not p.is_meta), None)
    if anchor is not None:
        patch = patch.to(device=anchor.device, dtype=anchor.dtype)
    position = sum(name.startswith("linear_patch_") for name, _ in reader.named_children())
    reader.add_module(f"linear_patch_{position}", patch)

    def before_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, call = split_call(args, kwargs)
        weight = next(patch.parameters(), None)
        patched: Tensor = patch(hidden if weight is None else hidden.to(weight.device))
        return join_call(patched, call)

    reader.register_forward_pre_hook(before_forward, with_kwargs=True)


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


def _refuse_save(*_: Any, **__: Any) -> None:
    raise StorageError(
        "A patched view holds a module that no stock class knows: a plain checkpoint of it would load "
        "without its patch. Save the pruned view, and the patch beside it."
    )
