"""Is what was written what was measured? It is loaded again before it replaces anything."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from linearpatch.checkpoint.loading import load_whole, read_edit
from linearpatch.checkpoint.manifest import Manifest
from linearpatch.errors import ModelError
from linearpatch.models.agreement import allowed_difference, check_logits_of, difference
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit

log = logging.getLogger(__name__)

# A part of a GPU's free memory that a second copy of the model may take.
FREE_PART = 0.8


def check_written(
    folder: Path,
    manifest: Manifest,
    dense: Decoder,
    edit: Edit,
    written: PreTrainedModel | None,
) -> None:
    """Load a checkpoint that isn't in its place yet and compare the logits of a few tokens.

    It takes the memory of one more copy of the pruned model, on its own device where that has room, else on the CPU;
    a model that is spread or offloaded is loaded as it is spread itself.

    Args:
        folder: Where it lies.
        manifest: What it says of itself.
        dense: The dense model.
        edit: What it was measured with.
        written: The model that was written; None for an adapter.

    Raises:
        ModelError: the model that was loaded is another.
    """
    measured = edit.view(dense)
    expected = check_logits_of(measured)
    if written is None:
        actual = check_logits_of(read_edit(folder, manifest).view(dense))
    else:
        with TemporaryDirectory() as scratch:
            model = load_whole(folder, manifest, **_placement(written, scratch))
            actual = check_logits_of(model)
            del model
    error = difference(actual, expected)
    allowed = allowed_difference(measured.dtype)
    if error > allowed:
        names = edit.describe_removed() if edit.removed_parts else sorted(edit.removed_layers)
        others = [name for name in ("custom", "adapter") if name != manifest.format]
        raise ModelError(
            f"The {manifest.format} checkpoint of {type(dense.model).__name__} without layers "
            f"{names} would load as another model than the one that was measured: its logits "
            f"differ by {error:.1e} of the largest (allowed: {allowed:.0e} in "
            f"{str(measured.dtype).removeprefix('torch.')}). Nothing was saved. Use "
            f"save_format={' or '.join(others)}, or remove other layers."
        )
    log.info("the %s checkpoint was loaded again: its logits differ by %.1e of the largest", manifest.format, error)


def _placement(written: PreTrainedModel, scratch: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load a second copy where there is room for it."""
    settings: dict[str, Any] = {
        "dtype": written.dtype,
        "attn_implementation": written.config._attn_implementation,
    }
    devices = {parameter.device for parameter in written.parameters()}
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        return settings | {"device_map": written.hf_device_map, "offload_folder": scratch}
    (device,) = devices
    if device.type == "cuda":
        size = sum(parameter.numel() * parameter.element_size() for parameter in written.parameters())
        free, _ = torch.cuda.mem_get_info(device)
        if size < FREE_PART * free:
            return settings | {"device_map": {"": device}}
    return settings
