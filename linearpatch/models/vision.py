"""What vision-language models have beside a text decoder: a processor, and features of images in some layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from linearpatch.models.auto import is_vision_language
from linearpatch.text import layer_list

log = logging.getLogger(__name__)

# By which transformers' AutoProcessor makes a model's inputs of images and text.
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def processor_files(
    config: Any, location: str, revision: str | None = None, *, local_files_only: bool = False
) -> dict[str, str]:
    """The files of a model's processor by name, as they are; none for a model of text.

    Args:
        config: The model's.
        location: A hub id or a folder.
        revision: Commit, tag or branch of the hub.
        local_files_only: Don't ask the hub.
    """
    if not location or not is_vision_language(config):
        return {}
    files = {}
    for name in PROCESSOR_FILES:
        found = cached_file(
            location,
            name,
            revision=revision,
            local_files_only=local_files_only,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            files[name] = Path(found).read_text(encoding="utf-8")
    if not files:
        log.warning(
            "%s has no processor (%s): checkpoints made from it read text alone, until these files are copied to them",
            location, ", ".join(PROCESSOR_FILES[:2]),
        )  # fmt: skip
    return files


def write_processor(folder: Path, files: Mapping[str, str]) -> None:
    """Write a processor's files beside a tokenizer's, which are kept where both have one."""
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(content, encoding="utf-8")


def warn_of_images(config: Any, removed: Sequence[int]) -> None:
    """Say what removed layers change for images, which no text shows.

    Qwen3-VL adds features of its images to the stream after each of its first layers, by their positions.

    Args:
        config: The dense model's.
        removed: Dense indices.
    """
    places = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    if moved := [layer for layer in removed if layer < len(places)]:
        log.warning(
            "%s adds image features to the stream after each of its first %d layers. Without layers %s they are added "
            "after other layers than in the dense model. Text-only input isn't affected. For images keep these layers: "
            "pruner.protect_first=%d.",
            config.model_type, len(places), layer_list(moved), len(places),
        )  # fmt: skip
