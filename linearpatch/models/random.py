"""Randomly initialised models of any size, for work on speed and memory and for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from linearpatch.errors import ConfigError, ModelError, require_range, require_seed
from linearpatch.models.auto import auto_class
from linearpatch.models.decoder import text_config
from linearpatch.models.model import NO_SDPA, LoadedModel, Model, ready
from linearpatch.registry import component
from linearpatch.storage.cache import canonical

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


@component("model", "random")
@dataclass(frozen=True)
class RandomModel(Model):
    """A model with random weights and a byte-level tokenizer; its quality means nothing, its cost does.

    Attributes:
        family: A `model_type` of transformers, such as `llama`, `qwen3` or `gemma3_text`.
        settings: Fields of the family's configuration, such as `num_hidden_layers`.
        seed: Of the weights.
    """

    name: str = field(default="random", metadata={"identity": False})
    family: str = "llama"
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed("model.seed", self.seed)
        longest = self.settings.get("max_position_embeddings")
        if isinstance(longest, int):  # families build a model that can't read a token, or take it for no limit
            require_range("model.settings.max_position_embeddings", longest, low=1)

    def config(self, cache_dir: Path) -> Any:
        """Build the family's configuration."""
        if self.family not in CONFIG_MAPPING:
            near = get_close_matches(self.family, CONFIG_MAPPING.keys())
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ConfigError(
                f"model.family is {self.family!r}. {hint}Allowed: a model_type of transformers, such as llama."
            )
        special = {f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos"))}
        try:
            return CONFIG_MAPPING[self.family](**special | dict(self.settings))
        except Exception as error:
            raise ConfigError(f"model.settings don't fit {self.family}: {error}") from error

    def tokenizer(self, cache_dir: Path) -> Any:
        """The byte-level tokenizer."""
        return byte_tokenizer()

    def load(self, cache_dir: Path) -> LoadedModel:
        """Initialise the weights on the device."""
        config = self.config(cache_dir)
        if text_config(config).vocab_size < 256 + len(SPECIAL_TOKENS):
            raise ConfigError(
                f"model.settings.vocab_size is {text_config(config).vocab_size}. Allowed: at least 259 (bytes)."
            )
        auto = auto_class(config)
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        devices = [self.resolved_device] if self.resolved_device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.device(self.resolved_device):
            torch.manual_seed(self.seed)
            try:
                model = auto.from_config(config, dtype=dtype, attn_implementation=self.attn_implementation)
            except Exception as error:  # each family checks its sizes in its own way
                if NO_SDPA in str(error):
                    raise ModelError(
                        f"model.family={self.family} has no sdpa attention in this version of transformers. Use "
                        "model.attn_implementation=eager."
                    ) from error
                reason = str(error).splitlines()[0]
                raise ModelError(
                    f"model.family={self.family} with these model.settings is not a causal language model: {reason}"
                ) from error
        identity = {"config": config.to_dict(), "seed": self.seed, "dtype": str(dtype)}
        fingerprint = "random-" + hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]
        return ready(model.to(self.resolved_device), byte_tokenizer(), fingerprint)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte after three special tokens; it needs no files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
