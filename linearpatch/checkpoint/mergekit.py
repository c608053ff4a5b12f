"""The YAML by which mergekit makes the same model of the dense one, where layers were removed and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from transformers import PreTrainedModel

from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.rebuilding import config_changes

HEADER = """\
# The same layers of the dense model, by mergekit; `model` is its id on the hub, or its folder.
#   mergekit-yaml mergekit.yml FOLDER
"""


def mergekit_yaml(dense: Decoder, edit: Edit, name: str) -> str | None:
    """What mergekit reads; None where it can't make this model.

    It copies layers and counts them, and knows neither patches nor changed weights, nor the lists by which some
    families describe each of their layers.

    Args:
        dense: The dense model.
        edit: What is changed of it.
        name: Of the dense model: its id on the hub, or of its folder.
    """
    kept = [layer for layer in range(dense.num_layers) if layer not in edit.removed_layers]
    removes_alone = edit.removed and not (edit.operators or edit.weights or edit.narrowed or edit.removed_parts)
    if not removes_alone or config_changes(dense, kept):
        return None
    slices = [{"sources": [{"model": name, "layer_range": list(run)}]} for run in _runs(kept)]
    content = {"merge_method": "passthrough", "slices": slices, "dtype": _dtype(dense.model)}
    recipe: str = yaml.safe_dump(content, sort_keys=False)
    return HEADER + recipe


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _runs(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Layers in a row, as `[first, end)`."""
    starts = [layer for layer in kept if layer - 1 not in kept]
    ends = [layer + 1 for layer in kept if layer + 1 not in kept]
    return list(zip(starts, ends, strict=True))
