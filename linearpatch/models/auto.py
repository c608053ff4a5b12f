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

    A vision-language model is loaded whole, also where transformers has a class for its text decoder alone.

    Raises:
        ModelError: transformers has no model of its kind that continues text.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or ()):
        return AutoModelForCausalLM
    if is_vision_language(config):
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise ModelError(
        f"{config.model_type} is not a causal language model: transformers has none for {type(config).__name__}. "
        "Allowed: decoder-only language models, such as Llama, Qwen, Gemma or Mistral, and vision-language models "
        "around one, such as Mistral 3, Qwen2-VL or Gemma 3."
    )


def is_vision_language(config: Any) -> bool:
    """Whether a configuration is that of a language model that reads images, too."""
    whole = _whole_class(type(config))
    return whole is not None and model_class(type(config), config) is whole


def model_class(config_class: type, config: Any = None) -> Any:
    """The class of the model that a configuration class of transformers belongs to; None: it has none.

    Args:
        config_class: The class.
        config: Its configuration, which may name the class of its text decoder alone (`architectures`).
    """
    whole = _whole_class(config_class)
    alone = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    if whole is None or alone is None:
        return whole or alone
    named = getattr(config, "architectures", None) or ()
    return alone if alone.__name__ in named and whole.__name__ not in named else whole


def _whole_class(config_class: type) -> Any:
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(config_class, None)
