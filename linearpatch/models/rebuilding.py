"""Whether a pruned model is what its own configuration builds: what is loaded later must be what was measured.

Two things can go wrong when layers are removed. The configuration of a family may have no way to say which layers
are left; then weights don't fit, or fit other layers. And a layer's arithmetic may depend on its index or on the
number of layers (DiffLlama's lambda, GPT-2's scale by inverse layer index): a view keeps what the dense model had,
a model that is loaded computes it again. The first is looked for with `blueprint`, the second by running both.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.errors import ModelError
from linearpatch.models.agreement import allowed_difference, check_logits_of, check_logits_with_cache, difference
from linearpatch.models.blueprint import SHAPE, Difference, blueprint_of, differences
from linearpatch.models.decoder import Decoder, split_call, text_config
from linearpatch.models.layer_config import apply_changes, propose
from linearpatch.models.narrowing import NarrowedLayer, masked
from linearpatch.models.quantised import quantised_modules
from linearpatch.models.sublayers import sublayers_of
from linearpatch.models.vision import warn_of_images

log = logging.getLogger(__name__)

# Largest difference of logits between models that do the same arithmetic on the same device.
SAME_ARITHMETIC = {torch.float32: 1e-5, torch.float64: 1e-10}
SAME_ARITHMETIC_IN_HALF_PRECISION = 1e-2
# How much further than the dense model's a pruned model's logits with a cache may be from those without.
MORE_THAN_USUAL = 10

# By dense model: its blueprint, and the configuration changes that were decided on, by kept layers.
_blueprints: WeakKeyDictionary[nn.Module, PreTrainedModel] = WeakKeyDictionary()
_decided: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Mapping[str, Any]]] = WeakKeyDictionary()


def config_changes(dense: Decoder, kept: Sequence[int]) -> Mapping[str, Any]:
    """New values of the text configuration's fields that describe the kept layers.

    Where a field can be read in several ways, the one is taken whose model is most like the dense one without the
    other layers; models are built for that only where there is a choice.

    Args:
        dense: The dense model.
        kept: Dense indices of the layers that stay, ascending.
    """
    decided = _decided.setdefault(dense.model, {})
    if tuple(kept) not in decided:
        proposal = propose(dense.config, kept, dense.num_layers)
        changes = dict(proposal.changes)
        best = _distance(dense, kept, changes) if proposal.alternatives else 0.0
        for name, readings in proposal.alternatives.items():
            for reading in readings:
                if best == 0:
                    break
                tried = {**changes, name: reading}
                if (distance := _distance(dense, kept, tried)) < best:
                    best, changes = distance, tried
        decided[tuple(kept)] = changes
    return decided[tuple(kept)]


def check_removal(
    dense: Decoder,
    view: PreTrainedModel,
    removed: Sequence[int],
    narrowed: Sequence[NarrowedLayer] = (),
    removed_parts: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Make sure that a view is the dense model with some layers skipped, by the logits of a few tokens.

    Args:
        dense: The dense model.
        view: It without these layers, and without patches.
        removed: Their dense indices.
        narrowed: Layers of the view that lack heads and channels, which are masked in the dense model.
        removed_parts: The sublayer that layers of the view lack, by dense index, which is silenced in the dense model.

    Raises:
        ModelError: other layers depend on the removed ones or on their own position, or the view can't run.
    """
    kind = type(dense.model).__name__
    with ExitStack() as stack:
        for index in removed:
            handle = dense.layers[index].register_forward_hook(_passing_on, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(masked(dense, narrowed))
        for index, part in removed_parts.items():
            output = sublayers_of(dense, index)[part].output
            stack.callback(output.register_forward_hook(_silenced).remove)
        expected = check_logits_of(dense.model)
    advice = "Remove other layers, such as the last ones (pruner=tail), or choose another model."
    names = [*sorted(removed), *(f"{index}.{part}" for index, part in sorted(removed_parts.items()))]
    try:
        actual = check_logits_of(view)
    except Exception as error:  # whatever a family's code says of it
        raise ModelError(
            f"{kind} can't run without layers {names}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]} Its other layers need them. {advice}"
        ) from error
    warn_of_images(dense.model.config, removed)
    error_size = difference(actual, expected)
    if error_size > _allowed(view):
        raise ModelError(
            f"Removing layers {names} from {kind} changes more than these layers: its logits differ by "
            f"{error_size:.1e} of the largest from those of the dense model that skips them. Other layers depend on "
            f"their position, or on what the removed ones compute. {advice}"
        )
    size, reason = _without_a_cache(view, actual)
    if size > allowed_difference(view.dtype):
        usual, _ = _without_a_cache(dense.model, check_logits_of(dense.model))
        if size > MORE_THAN_USUAL * usual:  # some families aren't exact themselves
            raise ModelError(f"{kind} can't generate with a cache without layers {names}: {reason} {advice}")


def check_rebuilt(dense: Decoder, view: PreTrainedModel, removed: Sequence[int]) -> None:
    """Make sure that a saved view will load as what it is, before anything is written.

    Args:
        dense: The dense model.
        view: It without these layers, and without patches.
        removed: Their dense indices.

    Raises:
        ModelError: names what would differ, and what can be saved instead.
    """
    kept = [index for index in range(dense.num_layers) if index not in set(removed)]
    deviations = _differences(dense, kept, config_changes(dense, kept))
    if not deviations and _in_memory(view):
        error_size = difference(check_logits_of(_rebuilt(view)), check_logits_of(view))
        if error_size > _allowed(view):
            away = f"{error_size:.1e} of the largest away"
            deviations = [Difference(False, "the logits of a few tokens", "what was measured", away)]
    if deviations:
        raise ModelError(_message(dense, removed, deviations))


def check_tables(dense: Decoder) -> None:
    """Reject a model that keeps something for each layer outside its layers, such as a table of embeddings.

    Raises:
        ModelError: names it.
    """
    if dense.num_layers < 2:
        return
    kept = list(range(dense.num_layers - 1))
    inside = f"{dense.parts.layers}."
    for deviation in _differences(dense, kept, config_changes(dense, kept)):
        shapes = all(text.startswith(SHAPE) for text in (deviation.pruned, deviation.rebuilt))
        if shapes and not deviation.where.startswith(inside):
            raise ModelError(
                f"{type(dense.model).__name__} can't lose layers: {deviation.where} holds a part for each of its "
                f"{dense.num_layers} layers ({deviation.pruned}; {deviation.rebuilt.removeprefix(SHAPE)} with one "
                "layer fewer), so that removing a layer changes a weight outside it. Choose a model without such a "
                "table."
            )


def _without_a_cache(model: PreTrainedModel, logits: Tensor) -> tuple[float, str]:
    """How far the logits of a token that is read after others were cached are from those without, and in words."""
    try:
        cached = check_logits_with_cache(model)
    except Exception as error:  # whatever a family's code says of it
        return float("inf"), f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    size = 0.0 if cached is None else difference(cached, logits[:, -1:])
    return size, f"its logits differ by {size:.1e} of the largest."


def _message(dense: Decoder, removed: Sequence[int], deviations: Sequence[Difference]) -> str:
    shown = "; ".join(str(deviation) for deviation in deviations[:3])
    more = f"; and {len(deviations) - 3} more" if len(deviations) > 3 else ""
    structural = any(deviation.structural for deviation in deviations)
    why = (
        "no configuration of its family describes the layers that are left"
        if structural
        else "its layers compute with numbers that depend on their position or on the number of layers, which are "
        "computed again when a checkpoint is loaded"
    )
    tail = list(range(dense.num_layers - len(removed)))
    last = not _differences(dense, tail, config_changes(dense, tail)) and sorted(removed) != [
        index for index in range(dense.num_layers) if index not in tail
    ]
    other = " Or remove the last layers instead, which changes none of these numbers (pruner=tail)." if last else ""
    return (
        f"{type(dense.model).__name__} without layers {sorted(removed)} can't be saved as a model of its own: {why} "
        f"({shown}{more}). Use save_format=adapter: linearpatch.apply puts it on the dense model and gives what was "
        f"measured.{other}"
    )


def _distance(dense: Decoder, kept: Sequence[int], changes: Mapping[str, Any]) -> float:
    return len(_differences(dense, kept, changes))


def _differences(dense: Decoder, kept: Sequence[int], changes: Mapping[str, Any]) -> list[Difference]:
    if dense.model not in _blueprints:
        _blueprints[dense.model] = blueprint_of(type(dense.model), dense.model.config)
    config = copy.deepcopy(dense.model.config)
    try:
        apply_changes(text_config(config), changes, len(kept))
        rebuilt = blueprint_of(type(dense.model), config)
        return list(differences(_blueprints[dense.model], kept, rebuilt, dense.parts.layers))
    except Exception as error:  # a configuration that its family's code doesn't take
        reason = " ".join(str(error).split())[:200]
        return [Difference(True, "the configuration", "what it was", f"rejected by transformers ({reason})")] * 1000


def _rebuilt(view: PreTrainedModel) -> PreTrainedModel:
    """The model that a view's configuration builds, with the view's own weights."""
    twin = blueprint_of(type(view), view.config)
    quantised = dict(quantised_modules(view))
    for name, module in quantised.items():  # which transformers puts in place of others when it loads
        owner, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, module)
    state = {
        name: value for name, value in view.state_dict().items() if not any(name.startswith(f"{q}.") for q in quantised)
    }
    twin.load_state_dict(state, strict=False, assign=True)
    twin.tie_weights()
    return twin.to(view.device).eval()


def _in_memory(view: PreTrainedModel) -> bool:
    """Whether all weights are on one device, not spread or offloaded."""
    return len({parameter.device for parameter in view.parameters()}) == 1 and view.device.type != "meta"


def _allowed(view: PreTrainedModel) -> float:
    return SAME_ARITHMETIC.get(view.dtype, SAME_ARITHMETIC_IN_HALF_PRECISION)


def _silenced(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    """A forward hook by which a sublayer adds nothing."""
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def _passing_on(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook by which a layer hands on what it read."""
    hidden, _ = split_call(args, kwargs)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
