"""A model as a component: settings that load to weights, a tokenizer and an identity."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from linearpatch.errors import ConfigError, ModelError, require_choice, require_tokenizer
from linearpatch.models.decoder import Decoder, check_logits, decoder_of
from linearpatch.models.layer_config import check_prunable
from linearpatch.models.rebuilding import check_tables
from linearpatch.results.sections import ModelSection
from linearpatch.runtime.distributed import whole_number

log = logging.getLogger(__name__)

NO_SDPA = "torch.nn.functional.scaled_dot_product_attention"  # in what transformers says of families without it
DEVICES = ("cpu", "cuda", "mps")
MOST_CHARACTERS = 100  # of a name
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A dense model ready for work.

    Attributes:
        decoder: The model and its parts.
        tokenizer: Its tokenizer.
        fingerprint: Identity of the weights: a hub commit, or a hash of the files.
        processor: Files of the processor of a vision-language model, by name.
    """

    decoder: Decoder
    tokenizer: Any
    fingerprint: str
    processor: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Name of the weights' dtype."""
        return str(self.decoder.model.dtype).removeprefix("torch.")

    def section(self, name: str, note: str = "") -> ModelSection:
        """The model, for the record."""
        decoder = self.decoder
        return ModelSection(name, self.fingerprint, decoder.num_layers, decoder.num_parameters, self.dtype, note)

    @property
    def key(self) -> dict[str, Any]:
        """All about the model that numbers computed with it depend on."""
        return {
            "weights": self.fingerprint,
            "dtype": self.dtype,
            "device": self.decoder.input_device.type,
            "attention": self.decoder.model.config._attn_implementation,
        }


@dataclass(frozen=True)
class Model(ABC):
    """Settings that every model has.

    Attributes:
        name: Appears in tables and run ids.
        dtype: Of the weights; `auto` is the checkpoint's own.
        device: Such as `cuda:1`; `auto` is the first GPU, else the CPU.
        device_map: Spreads a model over devices (`auto`, or module names to devices); needs accelerate.
        attn_implementation: `sdpa`, `eager` or `flash_attention_2`.
        note: What a reader of its numbers must know.
        source: Hub id that model cards name as the base; empty takes where it was loaded from.
        license: Of the weights, by the hub's identifiers; empty where it isn't known.
    """

    version: ClassVar[int] = 1

    name: str = field(default="", metadata={"identity": False})
    dtype: str = "auto"
    device: str = field(default="auto", metadata={"identity": False})
    device_map: Any = field(default=None, metadata={"identity": False})
    attn_implementation: str = "sdpa"
    note: str = field(default="", metadata={"identity": False})
    source: str = field(default="", metadata={"identity": False})
    license: str = field(default="", metadata={"identity": False})

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype, DTYPES)
        if len(self.name) > MOST_CHARACTERS or any(ord(character) < 32 for character in self.name):
            raise ConfigError(
                f"model.name is {self.name[:40]!r}, with {len(self.name):,} characters. Allowed: up to "
                f"{MOST_CHARACTERS} that can be printed."
            )
        if self.device != "auto":
            check_device(self.device)

    @abstractmethod
    def config(self, cache_dir: Path) -> Any:
        """The model's Hugging Face configuration, without its weights."""

    @abstractmethod
    def load(self, cache_dir: Path) -> LoadedModel:
        """Load weights and tokenizer.

        Raises:
            ModelError: it can't be found, loaded, or pruned.
        """

    def tokenizer(self, cache_dir: Path) -> Any | None:
        """Its tokenizer alone; None where that would have to be downloaded or converted first."""
        return None

    @property
    def label(self) -> str:
        """What tables and run ids call it."""
        return self.name

    @property
    def origin(self) -> str:
        """Where the weights come from, for people: a hub id or a folder."""
        return self.name

    @property
    def hub_id(self) -> str:
        """What a model card names as the base; empty where that isn't known to be on the hub."""
        return self.source

    @property
    def known_license(self) -> str:
        """The licence of the weights, or nothing where it isn't known."""
        return self.license

    @property
    def torch_dtype(self) -> torch.dtype | str:
        """The dtype as transformers takes it."""
        return "auto" if self.dtype == "auto" else getattr(torch, self.dtype)

    @property
    def resolved_device(self) -> torch.device:
        """The device that `auto` stands for here."""
        if self.device != "auto":
            return torch.device(self.device)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # A launcher of several processes gives each a GPU of its own.
        own = whole_number("LOCAL_RANK", low=0)
        return torch.device("cuda") if own is None else torch.device("cuda", own)

    @property
    def waiting(self) -> Model:
        """The same away from GPUs, for a process that computes nothing with the whole model (`distill.sharded`)."""
        return replace(self, device="cpu", device_map=None)

    @property
    def placement(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that put the weights where they belong."""
        if self.device_map is not None:
            spread: Any = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
            return {"device_map": spread}
        return {} if self.resolved_device.type == "cpu" else {"device_map": {"": self.resolved_device}}


def check_device(name: str) -> None:
    """Reject a device that models can't compute on here.

    Raises:
        ConfigError: there is no such kind, or this machine has none of it or too few.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # no kind that computes either
    if device.type not in DEVICES or (device.type != "cuda" and device.index):
        raise ConfigError(f"model.device is {name!r}. Allowed: auto, cpu, cuda, cuda:N, mps.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {name!r}, but there is no CUDA device. Use model.device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ConfigError(f"model.device is {name!r}, but the last CUDA device is cuda:{last}. Allowed: up to that.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"model.device is {name!r}, but there is no MPS device. Use model.device=cpu.")


def ready(
    model: Any, tokenizer: Any, fingerprint: str, processor: Mapping[str, str] = MappingProxyType({})
) -> LoadedModel:
    """Freeze a freshly loaded model, find its parts and make sure that they are understood.

    Raises:
        ModelError: it can't be pruned, or its logits are made in an unknown way.
    """
    model.eval().requires_grad_(False)
    decoder = decoder_of(model)
    check_prunable(decoder.config)
    check_logits(decoder)
    check_tables(decoder)
    check_vocabulary(decoder, tokenizer)
    log.info("loaded %s: %d layers, hidden size %d", type(model).__name__, decoder.num_layers, decoder.hidden_size)
    return LoadedModel(decoder, tokenizer, fingerprint, processor)


def check_vocabulary(decoder: Decoder, tokenizer: Any) -> None:
    """Reject a tokenizer that makes tokens for which the model has no embedding.

    Special tokens may lie beyond the last one, as Gemma 3's text models have it for images: no text contains them.

    Raises:
        ConfigError: it is no tokenizer.
        ModelError: names the tokens.
    """
    require_tokenizer(tokenizer)
    rows = decoder.num_embeddings
    special = set(getattr(tokenizer, "all_special_ids", ()))
    special |= {index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    ordinary = [token for index, token in beyond if index not in special]
    if ordinary:
        shown = ", ".join(map(repr, ordinary[:5])) + (", …" if len(ordinary) > 5 else "")
        raise ModelError(
            f"The tokenizer has {len(tokenizer):,} tokens, the embedding of {type(decoder.model).__name__} only "
            f"{rows:,} rows: there is none for {shown}. Use the tokenizer that the model was trained with, or enlarge "
            "the model first (model.resize_token_embeddings(len(tokenizer))), train the new rows, and save both."
        )
    if beyond:
        log.warning("the special tokens %s have no embedding; text must not contain them", [name for _, name in beyond])
