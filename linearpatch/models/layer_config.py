"""What removing layers does to a model's configuration.

Families describe their layers in several ways: a list with one entry per layer, a list of indices, a count from
the first layer, the ends of a range, a table by index, a period. All but the last can be rewritten for the layers
that are kept. How a field is meant follows from its shape, and where that leaves a choice, `propose` names the
readings; `rebuilding` decides between them by building the model.

A period can't be rewritten, and layers that borrow from others can't be separated from them, so both are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from linearpatch.errors import ModelError

# Names of fields whose numbers are layers' indices, where their shape says the same.
OF_LAYERS = re.compile(r"layer|idx|indices|_ids$")
# Names of numbers that count layers, or name one at the end of a range.
COUNTS = re.compile(r"layer|block|first_k|dense|start|end|offset")

# Numbers of leading layers that are of one kind; the layers after them are of another.
LEADING_COUNTS = ("first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index")

# Lists that may happen to be as long as the model is deep.
NOT_PER_LAYER = ("architectures",)

# Rules that no subset of layers can follow, with the value at which they say nothing and why not.
UNREPRESENTABLE = {
    "num_kv_shared_layers": (0, "its last layers read the keys and values of earlier ones"),
    "decoder_sparse_step": (1, "its expert layers follow a period"),
    "interleave_moe_layer_step": (1, "its expert layers follow a period"),
    "attn_layer_period": (1, "its attention layers follow a period"),
    "expert_layer_period": (1, "its expert layers follow a period"),
    "hybrid_layer_period": (1, "its shared attention layers follow a period"),
}


@dataclass(frozen=True)
class Proposal:
    """How a configuration could describe the kept layers.

    Attributes:
        changes: New values, by field, by the likeliest reading of each.
        alternatives: Other readings of fields whose shape leaves a choice, by field.
    """

    changes: Mapping[str, Any]
    alternatives: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def already_patched(what: str) -> ModelError:
    """The error for pruning a model that carries patches, or whose layers have sizes of their own."""
    return ModelError(
        f"{what} has lost layers before, or parts of them, and carries patches or sizes that belong to its layers' "
        "positions. Prune the dense model by all the layers at once, or start from a checkpoint with save_format=plain."
    )


def check_prunable(config: Any) -> None:
    """Reject a model whose layers follow a rule that its configuration can't state for a subset.

    Raises:
        ModelError: names the rule and its value.
    """
    if any(getattr(config, name, None) for name in ("linear_patches", "linear_sizes", "linear_removed")):
        raise already_patched(config.model_type)
    lists_types = getattr(config, "layer_types", None) is not None
    for rule, (harmless, reason) in UNREPRESENTABLE.items():
        value = getattr(config, rule, None)
        explicit = rule == "interleave_moe_layer_step" and getattr(config, "moe_layers", None) is not None
        explicit |= rule == "hybrid_layer_period" and lists_types
        if value is not None and value > harmless and not explicit:
            raise ModelError(
                f"{config.model_type} can't lose layers: {reason} ({rule}={value}), which no configuration "
                "of the remaining layers can express. Choose a model without that rule."
            )


def propose(config: Any, kept: Sequence[int], num_layers: int) -> Proposal:
    """How a text configuration could describe only the kept layers.

    Args:
        config: The dense model's; it does not change.
        kept: Dense indices of the layers that stay, ascending.
        num_layers: Number of layers before.
    """
    changes: dict[str, Any] = {}
    alternatives: dict[str, list[Any]] = {}
    depth = {"num_hidden_layers", config.attribute_map.get("num_hidden_layers")}
    for name, value in config.to_dict().items():
        if name in depth or name.endswith("_token_id"):
            continue
        readings = _readings(name, value, kept, num_layers)
        if readings and readings[0] != value:
            changes[name] = readings[0]
        if others := [reading for reading in readings[1:] if reading != readings[0]]:
            alternatives[name] = others
    return Proposal(changes, alternatives)


def apply_changes(config: Any, changes: Mapping[str, Any], num_layers: int) -> None:
    """Write new values into a configuration and check it as a whole.

    Raises:
        ModelError: the family's own checks don't accept them.
    """
    # Written past the config's own __setattr__ checks, which compare each field with the others while
    # only some of them are new; then checked as a whole.
    properties = {name for name in changes if isinstance(getattr(type(config), name, None), property)}
    vars(config).update({name: value for name, value in changes.items() if name not in properties})
    config.num_hidden_layers = num_layers
    validate = getattr(config, "validate", None)
    if properties or callable(validate):
        try:
            for name in properties:  # such as transformers' per_layer_config
                setattr(config, name, changes[name])
            if callable(validate):
                validate()
        except Exception as error:  # a class of huggingface_hub's, around whatever the family raised
            raise ModelError(
                f"{config.model_type} has no configuration for these {num_layers} layers: "
                f"{' '.join(str(error).split())[:300]} Remove other layers."
            ) from error


def _readings(name: str, value: Any, kept: Sequence[int], num_layers: int) -> list[Any]:
    """What a field becomes, by each way in which it could be meant, likeliest first; empty where none applies."""
    if name in NOT_PER_LAYER or isinstance(value, bool):
        return []
    if isinstance(value, int):
        return _of_number(name, value, kept, num_layers)
    if isinstance(value, dict):
        return _of_table(name, value, kept, num_layers)
    if isinstance(value, (list, tuple)) and value:
        return _of_list(name, list(value), kept, num_layers)
    return []


def _of_number(name: str, value: int, kept: Sequence[int], num_layers: int) -> list[Any]:
    before = sum(index < value for index in kept)
    if name in LEADING_COUNTS:
        return [before, value]
    if not COUNTS.search(name) or not 0 < value <= num_layers:
        return []
    return [value, before, sum(index <= value for index in kept) - 1]


def _of_table(name: str, value: Mapping[Any, Any], kept: Sequence[int], num_layers: int) -> list[Any]:
    """A table with a row for some layers, by their index."""
    if not value or not OF_LAYERS.search(name) or not all(str(key).isdecimal() for key in value):
        return []
    if not all(int(key) < num_layers for key in value):
        return []
    position = {old: new for new, old in enumerate(kept)}
    rows = {}
    for key, row in value.items():
        if (new := position.get(int(key))) is not None:
            rows[f"{new:0{len(key)}d}" if isinstance(key, str) else new] = row
    return [rows]


def _of_list(name: str, value: list[Any], kept: Sequence[int], num_layers: int) -> list[Any]:
    position = {old: new for new, old in enumerate(kept)}
    one_per_layer = [[value[index] for index in kept]] if len(value) == num_layers else []
    if (runs := _runs(value)) is not None and len(runs) == num_layers:
        return [[[[runs[index]], 1] for index in kept]]
    if 1 < len(value) < num_layers and all(isinstance(item, str) for item in value):
        return [value, [value[index % len(value)] for index in kept]]  # a pattern that may repeat (RecurrentGemma)
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if not whole or len(set(value)) != len(value):
        return one_per_layer
    from_zero = [position[index] for index in value if index in position] if max(value) < num_layers else None
    from_one = [position[index - 1] + 1 for index in value if index - 1 in position] if min(value) > 0 else None
    indices = [reading for reading in (from_zero, from_one) if reading is not None and max(value) <= num_layers]
    if min(value) < 0 or not indices or not (OF_LAYERS.search(name) or one_per_layer):
        return one_per_layer
    # With one entry per layer these are indices only where they name all layers: a few kinds repeat.
    return [*indices, *one_per_layer] if not one_per_layer or num_layers > 2 else [*one_per_layer, *indices]


def _runs(value: list[Any]) -> list[Any] | None:
    """A pattern written as [[kinds, times], …], one kind per layer (GPT-Neo); None where it isn't one."""
    kinds: list[Any] = []
    for run in value:
        if not (isinstance(run, (list, tuple)) and len(run) == 2 and isinstance(run[0], (list, tuple))):
            return None
        if not isinstance(run[1], int):
            return None
        kinds += list(run[0]) * run[1]
    return kinds
