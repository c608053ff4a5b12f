"""Which class of transformers a configuration belongs to: a language model, alone or behind an encoder of images."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from linearpatch.errors import ModelError


def auto_class(config: Any) -> Any:
    """The auto class that loads a configuration's model; one with code of its own names it itself.

    Raises:
        ModelError: transformers has no model of its kind that continues text.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or ()
    ):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"{config.model_type} is not a causal language model: transformers has none for {type(config).__name__}. "
        "Allowed: decoder-only language models, such as Llama, Qwen, Gemma or Mistral, and vision-language models "
        "around one, such as Mistral 3, Qwen2-VL or Gemma 3."
    )


def model_class(config_class: type) -> Any:
    """The class of the model that a configuration class of transformers belongs to."""
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING
    if config_class not in mapping:
        mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return mapping[config_class]
