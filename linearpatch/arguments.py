"""What the public functions are given: checked where it arrives, so that a mix-up is a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from linearpatch.data.tokens import Tokens
from linearpatch.errors import ConfigError, ModelError
from linearpatch.models.decoder import Decoder, check_logits, decoder_of
from linearpatch.models.edit import Edit
from linearpatch.models.layer_config import check_prunable
from linearpatch.models.rebuilding import check_tables


def require_folder(folder: object) -> None:
    """Raise `ConfigError` unless a value is a path; the model comes second."""
    if not isinstance(folder, str | Path):
        raise ConfigError(f"folder is a {type(folder).__name__}. Allowed: a path, as in save(folder, model, …).")


def require_tokens(data: object) -> None:
    """Raise `ConfigError` unless a value is what `linearpatch.tokens` makes."""
    if not isinstance(data, Tokens):
        raise ConfigError(
            f"data is a {type(data).__name__}. Allowed: Tokens, made by data = linearpatch.tokens(text, tokenizer)."
        )


def require_edit(edit: object) -> None:
    """Raise `ConfigError` unless a value is an edit."""
    if not isinstance(edit, Edit):
        raise ConfigError(f"edit is a {type(edit).__name__}. Allowed: an Edit, made by linearpatch.prune.")


def check_tokens(dense: Decoder, data: Tokens) -> None:
    """Reject tokens of another vocabulary.

    Raises:
        ModelError: the model has no embedding of some of them.
    """
    blocks = [data.blocks] if data.held_out is None else [data.blocks, data.held_out]
    largest = max(int(part.ids.max()) for part in blocks)
    if largest >= dense.num_embeddings:
        raise ModelError(
            f"data holds the token {largest:,}, and the embedding of {type(dense.model).__name__} has "
            f"{dense.num_embeddings:,} rows. Make it with the model's own tokenizer: data = linearpatch.tokens(…)."
        )


@contextmanager
def evaluating(model: PreTrainedModel, *, prunable: bool = True) -> Iterator[Decoder]:
    """The parts of a model, which is in evaluation mode meanwhile; its own modes come back at the end."""
    decoder = decoder_of(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        if prunable:
            check_prunable(decoder.config)
            check_tables(decoder)
        check_logits(decoder)
        yield decoder
    finally:
        for module in training:
            module.training = True
