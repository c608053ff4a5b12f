"""From a dense model, removed layers and patches to a folder that loads in the tools people use."""

from __future__ import annotations

import copy
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from linearpatch.checkpoint.folding import folded_view
from linearpatch.checkpoint.gguf.architecture import architecture_of
from linearpatch.checkpoint.gguf.writing import TYPES, check_tokenizer, write_gguf
from linearpatch.checkpoint.lora import check_lora, without_lora, write_lora
from linearpatch.checkpoint.manifest import (
    CARD_NAME,
    FILE_NAME,
    GGUF_FILE,
    LORA_FOLDER,
    MERGEKIT_FILE,
    PATCH_FILE,
    WEIGHTS,
    Base,
    Manifest,
    PatchEntry,
    hash_files,
    parent_of,
)
from linearpatch.checkpoint.mergekit import mergekit_yaml
from linearpatch.checkpoint.nemotron_nas import check_family, write_nemotron_nas
from linearpatch.checkpoint.new_layers import FOLDING, layered_model
from linearpatch.checkpoint.verifying import check_written
from linearpatch.errors import ConfigError, ModelError, StorageError, require_choice
from linearpatch.models.auto import is_vision_language
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.patched import check_storable
from linearpatch.models.quantised import check_order_of_codes, check_unquantised, quantised_modules
from linearpatch.models.rebuilding import check_rebuilt
from linearpatch.models.sublayers import sublayers_of
from linearpatch.models.units import LAYER
from linearpatch.models.vision import write_processor
from linearpatch.models.weight_changes import NewWeight, describe_weights, tensors_of
from linearpatch.patches.patch import Patch
from linearpatch.registry import components, name_of
from linearpatch.results.record import Record
from linearpatch.storage.files import replacing_folder
from linearpatch.text import values_without_folders, without_folders

log = logging.getLogger(__name__)

FORMATS = ("auto", "plain", "custom", "adapter", "lora", "gguf", "nemotron_nas")
STOCK_FORMATS = ("plain", "gguf", "nemotron_nas")  # hold the weights of a stock model and nothing else …
LAYERED_FORMATS = ("gguf", "nemotron_nas")  # … or layers of other kinds beside its own, or without a sublayer
ONE_KIND_FORMATS = ("plain", "lora")  # whose layers are all alike
MIXED_FORMATS = "Use save_format=gguf or nemotron_nas (Llama-like families), custom or adapter."
AS_LAYERS = (
    "Patches that are layers of their own: normed_refit, nbl, mlp, average_update, and lstsq with "
    "patch.features=rms_normalised."
)
EXPERTS_FROM_DISK = Version("5.14")


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
            f"save_format={save_format} can't hold patch={name_of(patch)} once it has been distilled: it is one "
            "factor for all channels no more. Use patch=mlp_lstsq, distill=none, or save_format=custom or adapter."
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
    """Reject to write over anything that isn't a checkpoint of this package.

    Raises:
        StorageError: the folder holds something else.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / FILE_NAME).is_file():
        raise StorageError(
            f"{folder} exists and isn't a checkpoint of this package (it holds no {FILE_NAME}). Move it away, or "
            "choose another output_dir."
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


def save_checkpoint(
    folder: str | Path,
    model: LoadedModel,
    edit: Edit,
    *,
    save_format: str = "auto",
    gguf_type: str = "auto",
    name: str = "",
    source: str = "",
    hub_id: str = "",
    license: str = "",
    record: Record | None = None,
) -> Manifest:
    """Write a pruned, patched model; a folder that was there before is replaced at the very end.

    Args:
        folder: Where to.
        model: The dense model with its tokenizer; it does not change.
        edit: What is removed, and the operators.
        save_format: `plain`: a stock checkpoint, with all patches folded into its weights. `custom`: the
            patches as modules of their own, with a modeling file. `adapter`: patches and changed weights alone, for
            `linearpatch.apply`. `lora`: the model without the LoRA adapter that was trained, and that adapter beside
            it, for peft. `gguf`: one file for llama.cpp, with patches folded as in `plain`, or as layers of their own.
            `nemotron_nas`: the same for vLLM and MLX, as a checkpoint of that family. `auto`: `plain` where the
            patches can be folded, else `custom`.
        gguf_type: Of the matrices of a GGUF file: `f32`, `f16`, `bf16`, `q8_0`; `auto` is the model's own.
        name: Of the dense model, for people.
        source: Where the dense model was loaded from.
        hub_id: What the model card names as the base model.
        license: Of the dense model.
        record: The run that made it, for the model card and as provenance.

    Returns:
        The manifest that was written.

    Raises:
        ModelError: the patches can't be folded into this family's weights, or what was written would load as
            another model than the one that was measured.
        StorageError: the folder can't be written, or no format can hold an operator.
    """
    require_choice("save_format", save_format, FORMATS)
    require_choice("gguf_type", gguf_type, TYPES)
    check_model(model, save_format, mixed_layers=edit.has_mixed_layers)
    check_target(Path(folder))
    check_storable(placed.module for placed in edit.operators)
    entries = tuple(PatchEntry.of(placed) for placed in edit.operators)
    if edit.narrowed and save_format in ("adapter", *STOCK_FORMATS):
        raise ModelError(
            f"save_format={save_format} can't hold layers that lost heads and channels: no configuration of a stock "
            "model describes them, and an adapter holds patches alone. Use save_format=custom."
        )
    if edit.removed_parts and save_format in ONE_KIND_FORMATS:
        raise ModelError(
            f"save_format={save_format} can't hold layers that lost a sublayer: no configuration of a stock model "
            f"describes them. {MIXED_FORMATS}"
        )
    if save_format != "adapter" and edit.is_stock:
        check_rebuilt(model.decoder, edit.with_operators(()).view(model.decoder), edit.removed_layers)
    check_lora(save_format, edit)
    with_lora = save_format == "lora"
    layered = layered_model(model.decoder, edit, save_format) if save_format in LAYERED_FORMATS else None
    save_format, view = (save_format, layered.model) if layered else _represent(save_format, model.decoder, edit)
    if view is not None and save_format == "plain":
        _check_experts_on_disk(view)
    manifest = Manifest(
        format=save_format,
        base=_base(model, name, source, hub_id, license),
        removed_layers=edit.removed_layers,
        removed=tuple(edit.describe_removed()) if edit.removed_parts else (),
        patches=entries,
        weights=tuple(describe_weights(edit.weights)) if view is None else (),
        lora=with_lora,
        num_new_layers=layered.num_new_layers if layered else 0,
        provenance=_provenance(record, source),
    )
    with replacing_folder(Path(folder)) as temporary:
        if view is None:
            dtype = model.decoder.model.dtype
            tensors = {
                f"{index}.{key}": value.to(dtype).contiguous()
                for index, placed in enumerate(edit.operators)
                for key, value in placed.module.state_dict().items()
            }
            save_file(tensors | _stored_weights(edit, dtype), temporary / PATCH_FILE)
        else:
            from linearpatch.checkpoint.card import model_card, title  # its tables import scipy, which takes seconds

            card = model_card(manifest, record)
            (temporary / CARD_NAME).write_text(card, encoding="utf-8")
            if layered and save_format == "gguf":
                texts = {"linearpatch.model_card": card, "linearpatch.pruning": manifest.text}
                file = temporary / GGUF_FILE
                write_gguf(file, layered, model.tokenizer, gguf_type=gguf_type, name=title(manifest), texts=texts)
            elif layered:
                write_nemotron_nas(temporary, layered)
                _write_inputs(temporary, model)
            else:
                view.save_pretrained(temporary, **_names_in_memory(view))
                if recipe := mergekit_yaml(model.decoder, edit, hub_id or manifest.base.name):
                    (temporary / MERGEKIT_FILE).write_text(recipe, encoding="utf-8")
                if with_lora:
                    write_lora(temporary / LORA_FOLDER, model.decoder, edit)
                _write_inputs(temporary, model)
        manifest = replace(manifest, files=hash_files(temporary))
        manifest.write(temporary)
        if not layered:  # those are loaded by other programs
            check_written(temporary, manifest, model.decoder, edit, view)
    log.info("saved %s (%s)", folder, save_format)
    return manifest


def _represent(save_format: str, dense: Decoder, edit: Edit) -> tuple[str, PreTrainedModel | None]:
    """The format that `auto` stands for, and the model to write in it."""
    if save_format == "adapter":
        return save_format, None
    if save_format == "lora":
        base = edit.with_weights(without_lora(edit))
        is_stock = not any(placed.place.adds_parameters for placed in base.operators)
        return ("plain" if is_stock else "custom"), base.view(dense)
    if not edit.is_stock:
        return "custom", edit.view(dense)
    if save_format != "custom" and edit.can_fold:
        try:
            return "plain", folded_view(dense, edit)
        except ModelError as error:
            if save_format == "plain":
                raise
            log.warning("the patches are saved as modules of their own: %s", error)
    elif save_format == "plain":
        raise ModelError(f"save_format=plain can't hold these patches: {FOLDING}. Remaining formats: custom, adapter.")
    view = edit.view(dense)
    if not any(placed.place.adds_parameters for placed in edit.operators):
        log.info("no patch is a module of its own, so that the checkpoint needs no code: it is plain")
        return "plain", view
    return "custom", view


def _stored_weights(edit: Edit, dtype: torch.dtype) -> dict[str, Tensor]:
    """Changed weights as an adapter holds them: whole ones in the model's precision, updates in their own."""
    stored = {
        name: change.to(dtype) if isinstance(change, NewWeight) else change
        for name, change in ((name, copy.deepcopy(change)) for name, change in edit.weights.items())
    }
    return {name: values.cpu().contiguous() for name, values in tensors_of(stored, WEIGHTS).items()}


def _check_experts_on_disk(view: PreTrainedModel) -> None:
    """Say in advance that transformers can't write offloaded experts in their stock format.

    Raises:
        ModelError: names the release that can.
    """
    offloaded = any(parameter.is_meta for parameter in view.parameters())
    experts = any(hasattr(module, "experts") for module in view.modules())
    if offloaded and experts and Version(transformers.__version__) < EXPERTS_FROM_DISK:
        raise ModelError(
            f"transformers {transformers.__version__} can't write a mixture of experts whose weights are on disk. "
            f"Use transformers {EXPERTS_FROM_DISK} or newer, a device_map that keeps the weights in memory, or "
            "save_format=custom or adapter."
        )


def _names_in_memory(view: PreTrainedModel) -> dict[str, Any]:
    """Arguments of `save_pretrained` for a quantised model, whose weights transformers only writes as it holds them."""
    return {"save_original_format": False} if any(quantised_modules(view)) else {}


def _write_inputs(folder: Path, model: LoadedModel) -> None:
    """Write what makes a model's inputs: its tokenizer, and the processor of a vision-language model."""
    model.tokenizer.save_pretrained(folder)
    write_processor(folder, model.processor)


def _base(model: LoadedModel, name: str, source: str, hub_id: str, license: str) -> Base:
    decoder = model.decoder
    return Base(
        name=without_folders(name or source) or type(decoder.model).__name__,
        source=without_folders(source),
        hub_id=hub_id,
        fingerprint=model.fingerprint,
        weights_hash=weights_hash(decoder.model),
        model_type=decoder.model.config.model_type,
        num_layers=decoder.num_layers,
        hidden_size=decoder.hidden_size,
        dtype=model.dtype,
        license=license,
    )


def _provenance(record: Record | None, source: str) -> dict[str, object]:
    """Which run made it, and how the dense model was made where that was a checkpoint of ours, too."""
    parent = parent_of(source)
    provenance: dict[str, object] = {"parent": parent} if parent else {}
    if record is not None:
        names = ("run_id", "command", "seed", "pruning", "patch", "distillation", "config", "environment")
        content = record.to_plain()
        provenance |= {name: content[name] for name in names}
        provenance["command"] = shlex.join(map(without_folders, shlex.split(record.command)))
    shareable: dict[str, object] = values_without_folders(provenance)
    return shareable
