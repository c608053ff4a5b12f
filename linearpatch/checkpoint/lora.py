"""A LoRA adapter beside the model that it was trained on, in peft's format."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from linearpatch.checkpoint.manifest import LORA_FILES
from linearpatch.errors import ModelError, StorageError
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.places import OnOutput
from linearpatch.models.weight_changes import LowRankUpdate, ParameterName, Weights


def without_lora(edit: Edit) -> Weights:
    """The changed weights that a LoRA adapter doesn't hold."""
    return {name: change for name, change in edit.weights.items() if not isinstance(change, LowRankUpdate)}


def check_lora(save_format: str, edit: Edit) -> None:
    """Reject `save_format=lora` where an adapter can't hold what was trained.

    Raises:
        ModelError: there are no updates, or an operator acts on what an updated matrix writes.
    """
    if save_format != "lora":
        return
    updated = {name for name, change in edit.weights.items() if isinstance(change, LowRankUpdate)}
    if not updated:
        raise ModelError(
            "save_format=lora saves the trained LoRA adapter, and this model has none: distill.trainable=lora wasn't "
            "used, or no training step improved the model. Train one, or use another save_format."
        )
    for placed in edit.operators:
        if isinstance(placed.place, OnOutput) and any(name.layer == placed.place.layer for name in updated):
            raise ModelError(
                f"save_format=lora can't hold a patch on what the MLP of layer {placed.place.layer} writes beside "
                "updates of that layer: on its own the adapter would go past the patch. Use save_format=plain or "
                "custom, which merge it, or patch=mlp_refit."
            )


def write_lora(folder: Path, dense: Decoder, edit: Edit) -> None:
    """Write the updates as peft's `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        folder: Where to; it is made.
        dense: The dense model.
        edit: With its updates, which all have one rank and scale.
    """
    from peft import LoraConfig  # which takes seconds to import

    updates = {name: change for name, change in edit.weights.items() if isinstance(change, LowRankUpdate)}
    kept = [layer for layer in range(dense.num_layers) if layer not in set(edit.removed_layers)]
    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        module = f"base_model.model.{_module_of(dense, kept, name)}"
        tensors[f"{module}.lora_A.weight"] = update.down.detach().cpu().contiguous()
        tensors[f"{module}.lora_B.weight"] = update.up.detach().cpu().contiguous()
    any_update = next(iter(updates.values()))
    rank = any_update.down.shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=round(any_update.scale * rank),
        target_modules=sorted(_module_of(dense, kept, name) for name in updates),
        lora_dropout=0.0,
        fan_in_fan_out=any_update.transposed,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir()
    config.save_pretrained(str(folder))
    save_file(tensors, folder / LORA_FILES[1], metadata={"format": "pt"})


def merge_lora(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load an adapter by peft and add it to the weights of its model.

    Args:
        model: The model without it; it changes.
        folder: The adapter.

    Raises:
        StorageError: it doesn't fit the model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in a way that is deprecated there
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise StorageError(
            f"The LoRA adapter {folder} can't be put on the model beside it: {error} Copy the checkpoint again."
        ) from error
    return merged.eval()


def _module_of(dense: Decoder, kept: list[int], name: ParameterName) -> str:
    """The path of an updated matrix in the model without the removed layers."""
    return f"{dense.parts.layers}.{kept.index(name.layer)}.{name.name.removesuffix('.weight')}"
