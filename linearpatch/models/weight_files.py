"""The tensors in a folder's weight files, one file at a time; pickled files only where the user allows them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linearpatch.errors import ModelError

SAFETENSORS = "*.safetensors"
PICKLED = "pytorch_model*.bin"


def weight_files(folder: Path, *, allow_bin: bool) -> list[Path]:
    """The weight files of a folder in order; safetensors where there are any.

    Args:
        folder: A checkpoint of any kind.
        allow_bin: Whether pickled files may be read where there are no safetensors.

    Raises:
        ModelError: there are none, or only pickled ones, which aren't allowed.
    """
    if files := sorted(folder.glob(SAFETENSORS)):
        return files
    pickled = sorted(folder.glob(PICKLED))
    if pickled and not allow_bin:
        raise bin_not_allowed(str(folder))
    if not pickled:
        raise ModelError(f"{folder} holds no weights: neither {SAFETENSORS} nor {PICKLED}. Download the model again.")
    return pickled


def bin_not_allowed(source: str) -> ModelError:
    """The error for pickled weights that the user has not allowed."""
    return ModelError(
        f"The weights of {source} come as {PICKLED}, which are pickles, not as safetensors. If you trust where they "
        "come from, set model.allow_bin=true: they are then read as "
        "tensors and plain containers alone, and anything else in them is rejected."
    )


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a weight file by name, on the CPU.

    Raises:
        ModelError: the file is damaged, or holds other things than tensors.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} can't be read: {error}. Download it again.") from error
    try:
        content = _unpickled(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{file} can't be read as tensors alone: {reason} Download it again, or use a copy of the model in "
            "safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{file} holds other things than tensors by name. Use a copy of the model in safetensors.")
    return content


def _unpickled(file: Path) -> object:
    """What a pickled file holds, mapped into memory where its format allows that."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # written before PyTorch 1.6
