"""Whether the weights that were read are those of the model: transformers initialises at random what a file lacks."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from linearpatch.errors import ModelError

log = logging.getLogger(__name__)

DERIVED = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$")  # buffers of old releases
IN_A_LAYER = re.compile(r"\.\d+\.")
MOST_NAMED = 4


def check_weights(model: nn.Module, info: Mapping[str, Any], source: str, *, strict: bool = False) -> None:
    """Reject a model some of whose weights weren't read, or whose files hold weights that it has no place for.

    Args:
        model: What `from_pretrained` returned.
        info: What it returned beside it, with `output_loading_info=True`.
        source: Where it was loaded from, for the error.
        strict: Reject all that isn't part of the model; without, other parts than the decoder (a vision tower, heads
            for further tokens) only give a warning.

    Raises:
        ModelError: names the weights.
    """
    missing: Collection[str] = info["missing_keys"]
    mismatched = {str(entry[0]) for entry in info["mismatched_keys"]}
    unexpected = [name for name in info["unexpected_keys"] if not DERIVED.search(name)]
    foreign = [name for name in unexpected if strict or _belongs_to(name, model)]
    problems = [
        f"{len(names)} {what} ({_listed(names)})"
        for names, what in (
            (missing, "weights of the model are not in its files"),
            (mismatched, "weights have another shape than the model's"),
            (foreign, "weights in its files have no place in the model"),
        )
        if names
    ]
    if problems:
        raise ModelError(
            f"{source}: {'; '.join(problems)}. Its config.json doesn't match its weights, and missing weights would "
            "be initialised at random. Use the config.json that belongs to the weights, or download the model again."
        )
    if unexpected:
        log.warning("%s: weights of other parts than the decoder are not used: %s", source, _listed(unexpected))


def _belongs_to(name: str, model: nn.Module) -> bool:
    """Whether a weight is one of a module that the model has, or of a further layer of its own."""
    modules = {module for module, _ in model.named_modules()}
    layer = IN_A_LAYER.search(name)
    return name.rpartition(".")[0] in modules or (layer is not None and name[: layer.start()] in modules)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
