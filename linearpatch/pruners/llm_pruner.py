"""LLM-Pruner: attention heads and MLP channels of the middle layers, by first-order importance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from linearpatch.calibration.part_importance import KINDS
from linearpatch.calibration.weight_scores import part_importance
from linearpatch.calibration.workspace import Workspace
from linearpatch.errors import ConfigError, ModelError, require_choice
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.narrowing import LayerWidths, NarrowedLayer, widths_of
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import component
from linearpatch.results.scores import LayerScores
from linearpatch.results.sections import PruningSection

CRITERION = {"element": "share of sum |w * dL/dw| removed", "vector": "share of sum |sum w * dL/dw| removed"}


@component("pruner", "llm_pruner")
@dataclass(frozen=True)
class LlmPruner(Pruner):
    """Width pruning: the least important heads and MLP channels of each middle layer, as many parameters as n layers.

    LLM-Pruner (Ma et al. 2023), block-wise with Taylor importance: within each layer but the first four and the last
    two, the heads and channels with the least importance go (`calibration.part_importance`), the same share of both in
    every layer. The share follows from `num_pruned_layers`: as many parameters go as are in so many layers. Where heads
    are few, they are rounded, and channels make up for it. Of grouped-query attention a key-value head goes with all of
    its query heads. No layer is removed, so that there is no interface: patch=none.

    Attributes:
        importance: `element` sums |w ∂L/∂w|, the released code's default; `vector` takes the absolute value of each
            row's or column's sum.
    """

    removes_layers: ClassVar[bool] = False

    protect_first: int = 4
    protect_last: int = 2
    importance: str = "element"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pruner.importance", self.importance, KINDS)

    def check(self, num_layers: int, n: int) -> None:
        """Reject as many parameters as the layers have that may be narrowed, or more."""
        super().check(num_layers, n)
        if n >= (possible := len(self.candidates(num_layers))):
            raise ConfigError(
                f"num_pruned_layers is {n}, and pruner=llm_pruner takes as many parameters from {possible} layers "
                f"(pruner.protect_first={self.protect_first}, pruner.protect_last={self.protect_last}), of each of "
                f"which something must stay. Allowed: 1 to {possible - 1}."
            )

    def select(self, workspace: Workspace, n: int) -> Edit:
        """Rank heads and channels within each layer."""
        layers = self.candidates(workspace.num_layers)
        heads, channels = self.kept(workspace.decoder, n)
        importances = part_importance(workspace, layers, self.importance)
        narrowed = tuple(
            NarrowedLayer(layer, _largest(of_heads, heads), _largest(of_channels, channels))
            for layer, of_heads, of_channels in zip(layers, *importances, strict=True)
        )
        values: list[float | None] = [None] * workspace.num_layers
        for narrowed_layer, of_heads, of_channels in zip(narrowed, *importances, strict=True):
            kept = of_heads[list(narrowed_layer.heads)].sum() + of_channels[list(narrowed_layer.channels)].sum()
            values[narrowed_layer.layer] = 1 - float(kept / (of_heads.sum() + of_channels.sum()))
        return Edit(narrowed=narrowed, scores=LayerScores(CRITERION[self.importance], values=values))

    def widths(self, decoder: Decoder) -> LayerWidths:
        """How wide the layers are that may be narrowed.

        Raises:
            ModelError: they differ, or keep their heads and channels in an unknown way.
        """
        widths = {widths_of(decoder, layer) for layer in self.candidates(decoder.num_layers)}
        if len(widths) > 1:
            raise ModelError(
                f"pruner=llm_pruner needs layers of one width, and those of {type(decoder.model).__name__} have "
                f"{len(widths)}. Use a pruner that removes whole layers."
            )
        return widths.pop()

    def kept(self, decoder: Decoder, n: int) -> tuple[int, int]:
        """How many key-value heads and MLP channels stay in each layer, so that as many parameters go as n layers have.

        Raises:
            ConfigError: so many can't be removed.
        """
        layers, widths = self.candidates(decoder.num_layers), self.widths(decoder)
        sizes = [sum(parameter.numel() for parameter in decoder.layers[layer].parameters()) for layer in layers]
        per_layer = n * sum(sizes) / len(sizes) / len(layers)  # parameters that each layer must lose
        whole = widths.num_heads * widths.head_parameters + widths.num_channels * widths.channel_parameters
        heads = min(round(per_layer / whole * widths.num_heads), widths.num_heads - 1)
        channels = max(0, round((per_layer - heads * widths.head_parameters) / widths.channel_parameters))
        if channels >= widths.num_channels:
            raise ConfigError(
                f"num_pruned_layers is {n}: pruner=llm_pruner would have to remove all MLP channels of layers "
                f"{layers.start} to {layers.stop - 1}. Remove fewer."
            )
        return widths.num_heads - heads, widths.num_channels - channels

    def section(self, dense: Decoder, edit: Edit) -> PruningSection:
        """Also how wide the narrowed layers are."""
        sizes = {
            str(narrowed_layer.layer): {"heads": len(narrowed_layer.heads), "channels": len(narrowed_layer.channels)}
            for narrowed_layer in edit.narrowed
        }
        return replace(super().section(dense, edit), narrowed=sizes)


def _largest(importance: Tensor, number: int) -> tuple[int, ...]:
    """Indices of the largest, ascending; of equals, the earlier ones."""
    order = torch.argsort(importance, descending=True, stable=True)[:number]
    return tuple(sorted(order.tolist()))
