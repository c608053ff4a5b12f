"""What removing layers does to a model's configuration.

Families describe their layers in several ways: a list with one entry per layer, a list of indices, a count
from the first or last layer, a period. The first three can be rewritten for the layers that are kept; a
period can't, and layers that borrow from others can't be separated from them, so both are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from linearpatch.errors import ModelError

# Lists of layer indices.
INDEX_LISTS = ("full_attn_idxs", "mlp_only_layers", "moe_layers", "cross_attention_layers")

# Numbers of leading layers that are of one kind; the layers after them are of another.
LEADING_COUNTS = ("first_k_dense_replace", "max_window_layers")

# Lists that may happen to be as long as the model is deep.
NOT_PER_LAYER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")

# Rules that no subset of layers can follow, with the value at which they say nothing and why not.
UNREPRESENTABLE = {
    "num_kv_shared_layers": (0, "its last layers read the keys and values of earlier ones"),
    "decoder_sparse_step": (1, "its expert layers follow a period"),
    "interleave_moe_layer_step": (1, "its expert layers follow a period"),
    "attn_layer_period": (1, "its attention layers follow a period"),
    "expert_layer_period": (1, "its expert layers follow a period"),
    "hybrid_layer_period": (1, "its shared attention layers follow a period"),
}


def already_patched(what: str) -> ModelError:
    """The refusal to prune a model that carries patches."""
    return ModelError(
        f"{what} has lost layers before and carries patches that belong to its layers' positions. Prune the dense "
        "model by all the layers at once, or start from a checkpoint with save_format=plain."
    )


def check_prunable(config: Any) -> None:
    """Refuse a model whose layers follow a rule that its configuration can't state for a subset.

    Raises:
        ModelError: names the rule and its value.
    """
    if getattr(config, "linear_patches", None):
        raise already_patched(config.model_type)
    for rule, (harmless, reason) in UNREPRESENTABLE.items():
        value = getattr(config, rule, None)
        explicit = rule == "interleave_moe_layer_step" and getattr(config, "moe_layers", None) is not None
        if value is not None and value > harmless and not explicit:
            raise ModelError(
                f"{config.model_type} can't lose layers: {reason} ({rule}={value}), which no configuration "
                "of the remaining layers can express. Choose a model without that rule."
            )


def remove_from_config(config: Any, kept: Sequence[int], num_layers: int) -> None:
    """Rewrite a text configuration in place so that it describes only the kept layers.

    Args:
        config: The model's own copy; it changes.
        kept: Dense indices of the layers that stay, ascending.
        num_layers: Number of layers before.

    Raises:
        ModelError: see `check_prunable`.
    """
    check_prunable(config)
    position = {old: new for new, old in enumerate(kept)}
    rewritten: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in INDEX_LISTS and value:
            rewritten[name] = [position[index] for index in value if index in position]
        elif name in LEADING_COUNTS and isinstance(value, int):
            rewritten[name] = sum(index < value for index in kept)
        elif isinstance(value, list) and len(value) == num_layers and name not in NOT_PER_LAYER:
            rewritten[name] = [value[index] for index in kept]
    # Written past the config's own __setattr__ checks, which compare each field with the others while
    # only some of them are new; then checked as a whole.
    vars(config).update(rewritten)
    config.num_hidden_layers = len(kept)
    if callable(validate := getattr(config, "validate", None)):
        validate()
