"""Tasks answered by vLLM: a stock model is written to a temporary folder, and lm_eval's own backend serves it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from linearpatch.checkpoint.folding import folded_view
from linearpatch.errors import ConfigError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.harness.task_settings import TaskSettings
from linearpatch.runtime.memory import free_memory

SHARE = 0.9  # of the memory that is free, for vLLM


def check_installed(owner: str) -> None:
    """Reject the backend where vLLM isn't installed.

    Raises:
        ConfigError: says how to install it.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            f"{owner}.backend=vllm needs vLLM, which isn't installed. Install it (pip install 'linearpatch[vllm]'), or "
            f"use {owner}.backend=memory."
        )


def stock_model(subject: Subject, owner: str) -> PreTrainedModel:
    """A subject as an ordinary model of its family.

    Raises:
        ConfigError: its patch is a module that vLLM doesn't know.
        ModelError: its patch can't be folded into this family's weights.
    """
    edit = subject.edit
    if edit.narrowed or not edit.can_fold:
        raise ConfigError(
            f"{owner}.backend=vllm serves stock models, and the {subject.stage} one has modules or sizes of its own. "
            f"Use a patch that folds into weights (mlp_refit, block, mlp_lstsq, scalar), or {owner}.backend=memory."
        )
    return folded_view(subject.dense, edit)


@contextmanager
def served(subject: Subject, tokenizer: Any, settings: TaskSettings, owner: str) -> Iterator[Any]:
    """lm_eval's vLLM model of a subject, and its end.

    Args:
        subject: The model to measure.
        tokenizer: Its tokenizer.
        settings: How questions are asked.
        owner: The section of the configuration, for errors.
    """
    from lm_eval.models.vllm_causallms import VLLM

    model = stock_model(subject, owner)
    options: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch."), "batch_size": settings.batch_size}
    device = subject.decoder.input_device
    free = free_memory(device)
    if device.type == "cuda" and free is not None:  # the dense model stays in this process
        options["gpu_memory_utilization"] = SHARE * free / torch.cuda.get_device_properties(device).total_memory
    with TemporaryDirectory(prefix="linearpatch-vllm-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        engine: Any = VLLM(pretrained=folder, max_length=settings.max_length, **options)
        try:
            yield engine
        finally:
            del engine
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
