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

from linearpatch.checkpoint.checks import (
    FORMATS,
    LAYERED_FORMATS,
    MIXED_FORMATS,
    ONE_KIND_FORMATS,
    STOCK_FORMATS,
    check_gguf_type,
    check_model,
    check_target,
)
from linearpatch.checkpoint.folding import folded_view
from linearpatch.checkpoint.gguf.writing import TYPES, write_gguf
from linearpatch.checkpoint.lora import check_lora, without_lora, write_lora
from linearpatch.checkpoint.manifest import (
    CARD_NAME,
    GGUF_FILE,
    LORA_FOLDER,
    MERGEKIT_FILE,
    PATCH_FILE,
    WEIGHTS,
    Base,
    Manifest,
    PatchEntry,
    format_of,
    hash_files,
    parent_of,
)
from linearpatch.checkpoint.mergekit import mergekit_yaml
from linearpatch.checkpoint.nemotron_nas import write_nemotron_nas
from linearpatch.checkpoint.new_layers import FOLDING, layered_model
from linearpatch.checkpoint.verifying import check_written
from linearpatch.errors import ModelError, require_choice
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel
from linearpatch.models.patched import check_storable
from linearpatch.models.quantised import quantised_modules
from linearpatch.models.rebuilding import check_rebuilt
from linearpatch.models.vision import write_processor
from linearpatch.models.weight_changes import NewWeight, describe_weights, tensors_of
from linearpatch.results.record import Record
from linearpatch.storage.files import replacing_folder
from linearpatch.text import values_without_folders, without_folders

log = logging.getLogger(__name__)

EXPERTS_FROM_DISK = Version("5.14")


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
    check_gguf_type(gguf_type, save_format)
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
    if (earlier := format_of(Path(folder))) not in (None, manifest.format):
        log.warning("%s: the %s checkpoint is replaced, its format is %s now", folder, earlier, manifest.format)
    with replacing_folder(Path(folder)) as temporary:
        from linearpatch.checkpoint.card import model_card, title  # its tables import scipy, which takes seconds

        card = model_card(manifest, record)
        (temporary / CARD_NAME).write_text(card, encoding="utf-8")
        if view is None:
            dtype = model.decoder.model.dtype
            tensors = {
                f"{index}.{key}": value.to(dtype).contiguous()
                for index, placed in enumerate(edit.operators)
                for key, value in placed.module.state_dict().items()
            }
            save_file(tensors | _stored_weights(edit, dtype), temporary / PATCH_FILE)
        else:
            if layered and save_format == "gguf":
                texts = {"linearpatch.model_card": card, "linearpatch.pruning": manifest.text}
                file = temporary / GGUF_FILE
                write_gguf(file, layered, model.tokenizer, gguf_type=gguf_type, name=title(manifest), texts=texts)
            elif layered:
                write_nemotron_nas(temporary, layered)
                _write_inputs(temporary, model)
            else:
                view.save_pretrained(temporary, **_names_in_memory(view))
                name_for_others = hub_id or (manifest.base.name if Path(source).expanduser().is_dir() else "")
                if name_for_others and (recipe := mergekit_yaml(model.decoder, edit, name_for_others)):
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
