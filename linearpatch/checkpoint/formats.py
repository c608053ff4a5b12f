"""Which formats can hold an edited model, for people who have fitted one and want to serve it."""

from __future__ import annotations

from linearpatch.checkpoint.checks import LAYERED_FORMATS, check_model
from linearpatch.checkpoint.lora import check_lora
from linearpatch.checkpoint.new_layers import check_layers
from linearpatch.errors import ModelError
from linearpatch.models.edit import Edit
from linearpatch.models.model import LoadedModel


def formats_of(model: LoadedModel, edit: Edit) -> list[str]:
    """Values of `save_format` that can hold an edited model, going by its form: those without custom code first.

    Args:
        model: The dense model with its tokenizer.
        edit: What is changed of it.
    """
    if edit.narrowed:
        return ["custom"]
    formats = ["plain"] if edit.can_fold else []
    formats += [name for name in LAYERED_FORMATS if _is_served(name, model, edit)]
    return [*formats, *([] if "plain" in formats else ["custom"]), "adapter", *_lora(edit)]


def _is_served(save_format: str, model: LoadedModel, edit: Edit) -> bool:
    try:
        check_layers(model.decoder, edit, save_format)
        check_model(model, save_format, mixed_layers=edit.has_mixed_layers)
    except ModelError:
        return False
    return True


def _lora(edit: Edit) -> list[str]:
    if edit.removed_parts:
        return []
    try:
        check_lora("lora", edit)
    except ModelError:
        return []
    return ["lora"]
