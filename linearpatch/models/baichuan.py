"""Baichuan 2 7B as a Llama: the same computation, with its weights named and arranged otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaConfig, PreTrainedConfig

from linearpatch.errors import ModelError
from linearpatch.models.converted_repository import ConvertedRepository
from linearpatch.models.sentencepiece_tokenizer import converted_tokenizer
from linearpatch.registry import component

ARCHITECTURE = "BaichuanForCausalLM"  # of Baichuan 2, and of Baichuan 1 13B
FIRST_7B = "BaiChuanForCausalLM"  # of Baichuan 1 7B
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
OTHERS = ("initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
PACKED = "self_attn.W_pack."
HEAD = "lm_head.weight"


@component("model", "baichuan")
@dataclass(frozen=True)
class BaichuanModel(ConvertedRepository):
    """Baichuan 2 7B, converted exactly into a Llama; the 13B has ALiBi, which Llama has not.

    Queries, keys and values are the three parts of one matrix (`W_pack`), and the head's rows are scaled to length 1
    before they are used (Baichuan 2 report, section 3.4: NormHead). Both are done once, the head in fp32.
    """

    family: ClassVar[str] = "baichuan"

    def target_config(self, source: Mapping[str, Any]) -> PreTrainedConfig:
        """The sizes as they are, rotary embeddings of base 10,000."""
        if source.get("model_type") != self.family:
            raise ModelError(
                f"{self.path} is a model of type {source.get('model_type')!r}, not baichuan. Use model=hub."
            )
        architectures = source.get("architectures") or []
        if FIRST_7B in architectures or ARCHITECTURE not in architectures:
            raise ModelError(
                f"{self.path} has the architecture {architectures}. Allowed: {ARCHITECTURE} of Baichuan 2, whose head "
                "is normalised; Baichuan 1 isn't supported. Use model=baichuan2_7b."
            )
        # The 13B models have no limit of positions, since ALiBi has none; their code reads model_max_length alone.
        if "max_position_embeddings" not in source:
            raise ModelError(
                f"{self.path} (hidden size {source.get('hidden_size')}) is a 13B Baichuan: its attention uses ALiBi "
                "instead of rotary embeddings, so it can't become a Llama, and transformers has no model of that "
                "kind. Use model=baichuan2_7b, or llama2_13b for that size."
            )
        if quantised := source.get("quantization_config"):
            raise ModelError(f"{self.path} is quantised ({quantised}). Use the unquantised model.")
        sizes = {name: source[name] for name in SIZES} | {name: source[name] for name in OTHERS if name in source}
        return LlamaConfig(
            **sizes,
            num_key_value_heads=source["num_attention_heads"],
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=False,
            attention_bias=False,
            dtype=source.get("torch_dtype") or source.get("dtype"),
        )

    def target_weights(self, name: str, weight: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Split the packed projection, normalise the head; all other names are Llama's."""
        if PACKED in name:
            for projection, part in zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True):
                yield name.replace(PACKED, f"self_attn.{projection}."), part
        elif name == HEAD:
            yield name, normalize(weight.float())
        else:
            yield name, weight

    def target_tokenizer(self, folder: Path) -> Any:
        """Its sentencepiece model."""
        return converted_tokenizer(folder)
