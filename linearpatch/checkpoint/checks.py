"""What a checkpoint can't hold, said before the work that would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linearpatch.checkpoint.gguf.architecture import architecture_of
from linearpatch.checkpoint.gguf.writing import check_tokenizer
from linearpatch.checkpoint.manifest import FILE_NAME, foreign_files
from linearpatch.checkpoint.nemotron_nas import check_family
from linearpatch.errors import ConfigError, ModelError, StorageError, require_choice
from linearpatch.models.auto import is_vision_language
from linearpatch.models.decoder import Decoder
from linearpatch.models.model import LoadedModel
from linearpatch.models.quantised import check_order_of_codes, check_unquantised
from linearpatch.models.sublayers import sublayers_of
from linearpatch.models.units import LAYER
from linearpatch.patches.patch import Patch
from linearpatch.registry import components, name_of
from linearpatch.text import some_of

FORMATS = ("auto", "plain", "custom", "adapter", "lora", "gguf", "nemotron_nas")
STOCK_FORMATS = ("plain", "gguf", "nemotron_nas")  # hold the weights of a stock model and nothing else …
LAYERED_FORMATS = ("gguf", "nemotron_nas")  # … or layers of other kinds beside its own, or without a sublayer
ONE_KIND_FORMATS = ("plain", "lora")  # whose layers are all alike
MIXED_FORMATS = "Use save_format=gguf or nemotron_nas (Llama-like families), custom or adapter."
AS_LAYERS = (
    "Patches that are layers of their own: normed_refit, nbl, mlp, average_update, and lstsq with "
    "patch.features=rms_normalised."
)


def check_format(save_format: str, patch: Patch, *, trainable: str | None = None, unit: str = LAYER) -> None:
    """Reject early a format that can't hold what a model will be.

    Args:
        save_format: As of `save_checkpoint`.
        patch: Settings of the patch.
        trainable: What will be trained; None: nothing.
        unit: What will be removed.

    Raises:
        ConfigError: says which formats remain.
    """
    require_choice("save_format", save_format, FORMATS)
    if unit != LAYER and save_format in ONE_KIND_FORMATS:
        raise ConfigError(
            f"save_format={save_format} can't hold a model whose layers lost sublayers (pruner.unit={unit}): no "
            f"configuration of a stock model describes them. {MIXED_FORMATS}"
        )
    if save_format == "lora" and trainable != "lora":
        raise ConfigError(
            f"save_format=lora holds a LoRA adapter beside the model, and {_trained_otherwise(trainable)}. Use "
            "distill.trainable=lora, or another save_format."
        )
    if save_format in LAYERED_FORMATS and patch.adds_layers:
        return
    if save_format in STOCK_FORMATS and patch.foldable and trainable and not patch.foldable_distilled:
        raise ConfigError(
            f"save_format={save_format} can't hold patch={name_of(patch)} once it has been distilled: it is no longer "
            "one factor for all channels. Use patch=mlp_lstsq, distill=none, or save_format=custom or adapter."
        )
    if save_format in STOCK_FORMATS and not patch.foldable:
        foldable = sorted(name for name, cls in components("patch").items() if cls.foldable)  # type: ignore[attr-defined]
        raise ConfigError(
            f"save_format={save_format} can't hold patch={name_of(patch)}: no weight of a stock model acts on the "
            "whole stream, so it can't be folded. Remaining formats: custom (a checkpoint with a short modeling file), "
            f"adapter (the patch alone). Patches that fold: {', '.join(foldable)}."
            f"{' ' + AS_LAYERS if save_format in LAYERED_FORMATS else ''}"
        )


def _trained_otherwise(trainable: str | None) -> str:
    return f"distill.trainable={trainable} trains none" if trainable else "distill=none trains none"


def check_target(folder: Path) -> None:
    """Reject to write over anything but a checkpoint of this package.

    Raises:
        StorageError: the folder holds something else, or files beside a checkpoint.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / FILE_NAME).is_file():
        raise StorageError(
            f"{folder} exists and isn't a checkpoint of this package (it holds no {FILE_NAME}). Move it away, or "
            "choose another folder."
        )
    if folder.exists() and (foreign := foreign_files(folder)):
        raise StorageError(
            f"{folder} holds files that this package didn't write: {some_of(foreign)}. Saving a checkpoint replaces "
            "the whole folder. Move these files away, or choose another folder."
        )


def check_gguf_type(gguf_type: str, save_format: str) -> None:
    """Reject a type of numbers for a checkpoint that isn't a GGUF file.

    Raises:
        ConfigError: says so.
    """
    if gguf_type != "auto" and save_format != "gguf":
        raise ConfigError(
            f"gguf_type is {gguf_type}, and save_format is {save_format}: only GGUF files have such a type. Use "
            "save_format=gguf, or leave gguf_type out."
        )


def check_config(config: Any, save_format: str, *, mixed_layers: bool) -> None:
    """Reject early a model that another program than transformers would compute otherwise.

    Args:
        config: The dense model's, as transformers has it.
        save_format: As of `save_checkpoint`.
        mixed_layers: Whether layers lose a sublayer, or patches become layers of their own.

    Raises:
        ModelError: names what the format lacks.
    """
    if save_format in LAYERED_FORMATS and is_vision_language(config):
        raise ModelError(
            f"save_format={save_format} can't hold {config.model_type}: it holds a text decoder alone, and this model "
            "reads images, too. Use save_format=plain, custom or adapter."
        )
    if save_format == "gguf":
        architecture_of(config, mixed_layers=mixed_layers)
    elif save_format == "nemotron_nas":
        check_family(config)


def check_model(model: LoadedModel, save_format: str, *, mixed_layers: bool) -> None:
    """The same with the tokenizer, which a GGUF file holds.

    Raises:
        ModelError: names what the format lacks.
    """
    if save_format in (*LAYERED_FORMATS, "lora"):
        formats = "Use save_format=plain (patches that change no weight), custom or adapter."
        check_unquantised([model.decoder.model], f"save_format={save_format}", formats)
    if save_format != "adapter":
        check_order_of_codes(model.decoder.model)
    check_config(model.decoder.model.config, save_format, mixed_layers=mixed_layers)
    if save_format == "gguf":
        check_tokenizer(model)


def check_foldable(decoder: Decoder) -> None:
    """Reject early a family whose layers can't absorb a patch.

    Raises:
        ModelError: a layer writes to the stream in an unknown way.
    """
    for index in range(decoder.num_layers):
        sublayers_of(decoder, index)
