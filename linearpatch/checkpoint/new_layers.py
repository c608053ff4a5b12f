"""An edited model as a stock one with patches between its layers, for formats whose layers are of several kinds.

Some of its layers may lack their attention or their MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.checkpoint.folding import folded_view
from linearpatch.errors import ModelError
from linearpatch.models.decoder import Decoder, decoder_of, norm_epsilon, text_config
from linearpatch.models.edit import Edit
from linearpatch.models.modeling_linearpatch import FeatureMap, RemovedModule
from linearpatch.models.sublayers import ATTENTION, MLP

CHILDREN = {"self_attn": ATTENTION, "mlp": MLP}  # of layers of the families that these formats hold
FOLDING = "only a scale common to all channels, or a map of an MLP's output, can be folded into stock weights"


@dataclass(frozen=True)
class LayeredModel:
    """A stock model, and operators that are layers of their own.

    Attributes:
        config: Of the dense model's text part.
        model: Holds everything else in its weights. Sublayers that were removed are placeholders in it.
        layers: Its layers and the operators, in the order in which they run.
    """

    config: Any
    model: PreTrainedModel
    layers: Sequence[nn.Module]

    @property
    def num_new_layers(self) -> int:
        """How many of the layers are operators."""
        return len(self.layers) - decoder_of(self.model).num_layers

    @property
    def has_mixed_layers(self) -> bool:
        """Whether any is an operator, or lacks a sublayer."""
        return self.num_new_layers > 0 or any(removed_part(layer) for layer in self.layers)


def layered_model(dense: Decoder, edit: Edit, save_format: str) -> LayeredModel:
    """The edited model in that form.

    Args:
        dense: The dense model; it does not change.
        edit: What is changed of it.
        save_format: What it is for.

    Raises:
        ModelError: as of `check_layers`, or a fold isn't exact.
    """
    check_layers(dense, edit, save_format)
    model = folded_view(dense, edit.without_new_layers)
    layers: list[nn.Module] = []
    kept = [index for index in range(dense.num_layers) if index not in edit.removed_layers]
    own_layers = decoder_of(model).layers
    for position in range(len(kept) + 1):
        readers = set(range(kept[position - 1] + 1 if position else 0, [*kept, dense.num_layers][position] + 1))
        layers += [placed.module for placed in edit.new_layers if placed.site.reader in readers]
        layers += own_layers[position : position + 1]
    return LayeredModel(text_config(dense.model.config), model, layers)


def check_layers(dense: Decoder, edit: Edit, save_format: str) -> None:
    """Reject operators that are neither layers nor foldable, or normalise otherwise than the model.

    Args:
        dense: The dense model.
        edit: What is changed of it.
        save_format: What it is for.

    Raises:
        ModelError: says which.
    """
    others = edit.without_new_layers
    if edit.narrowed or not others.operators_fold:
        raise ModelError(
            f"save_format={save_format} can't hold these patches: {FOLDING}; and only a map or an MLP of the "
            "normalised stream, or a constant, can be a layer of its own (patch=normed_refit, nbl, mlp, "
            "average_update). Remaining formats: custom, adapter."
        )
    if edit.new_layers and any(placed.place.adds_parameters for placed in others.operators):
        raise ModelError(
            f"save_format={save_format} can't hold patches that fold into weights beside patches that are layers of "
            "their own. Use patches of one kind, or save_format=custom or adapter."
        )
    expected = norm_epsilon(dense)
    for placed in edit.new_layers:
        epsilon = getattr(placed.module, "epsilon", expected)  # a constant needs none
        if epsilon != expected:  # a file has one for all its norms
            raise ModelError(
                f"save_format={save_format} can't hold the patch at {placed.site.interface}: it adds {epsilon:.3g} to "
                f"mean squares, and the norms of the model {expected:.3g}. Fit it with patch.epsilon=null, or use "
                "save_format=custom or adapter."
            )


def removed_part(layer: nn.Module) -> str | None:
    """The sublayer that a layer of the model lacks: `attention` or `mlp`."""
    lacking = [part for name, part in CHILDREN.items() if isinstance(getattr(layer, name, None), RemovedModule)]
    return lacking[0] if lacking else None


@torch.no_grad()
def matrix_of(operator: FeatureMap) -> Tensor:
    """W of an operator as `[outputs, inputs]`, where it is a product multiplied out."""
    product: Tensor = operator.weights[0].double()
    for weight in operator.weights[1:]:
        product = weight.double() @ product
    return product.float()
