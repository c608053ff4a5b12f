"""Write a model as a GGUF file, a tensor at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    quant_shape_to_byte_shape,
    quantize,
)
from torch import Tensor

from linearpatch.checkpoint.gguf.architecture import (
    Architecture,
    all_tensors,
    architecture_of,
    context_length,
    head_size,
    rotary_of,
)
from linearpatch.checkpoint.gguf.vocabulary import vocabulary_of
from linearpatch.errors import ModelError
from linearpatch.models.decoder import decoder_of, text_config
from linearpatch.models.model import LoadedModel

TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
# Of the matrices, by the dtype of a model; vectors are always f32.
TYPE_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f32"}
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
Q8_BLOCK = 32


def check_convertible(model: LoadedModel) -> None:
    """Reject early a model or a tokenizer that llama.cpp has no equivalent for.

    Raises:
        ModelError: names what it lacks.
    """
    architecture_of(model.decoder.model.config)
    vocabulary_of(model.tokenizer, _num_embeddings(model.decoder.model))


def write_gguf(path: Path, model: Any, tokenizer: Any, *, gguf_type: str, name: str, texts: dict[str, str]) -> None:
    """Write a model that is stock weights and nothing else.

    Args:
        path: The file; nothing is there.
        model: Of a family that `architecture_of` knows.
        tokenizer: Its tokenizer.
        gguf_type: Of its matrices: `f32`, `f16`, `bf16`, `q8_0`, or `auto`, which is the model's own.
        name: Of the model.
        texts: More metadata, by key.

    Raises:
        ModelError: llama.cpp would compute something else.
    """
    config = text_config(model.config)
    architecture = architecture_of(config)
    kind = TYPE_OF_DTYPE[model.dtype] if gguf_type == "auto" else gguf_type
    vocabulary = vocabulary_of(tokenizer, _num_embeddings(model))
    writer = GGUFWriter(path, architecture.name)
    try:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_sizes(writer, config, architecture)
        vocabulary.add_to(writer)
        for key, text in texts.items():
            writer.add_string(key, text)
        tensors = all_tensors(model, architecture, decoder_of(model).layers)
        kinds = {}
        for key, value_of in tensors:
            shape = tuple(value_of().shape)
            kinds[key] = _kind_of(shape, kind)
            stored = quant_shape_to_byte_shape(shape, kinds[key]) if _is_packed(kinds[key]) else shape
            width = 1 if _is_packed(kinds[key]) else 4 if kinds[key] == GGMLQuantizationType.F32 else 2
            dtype = {1: np.dtype(np.uint8), 2: np.dtype(np.float16), 4: np.dtype(np.float32)}[width]
            writer.add_tensor_info(key, stored, dtype, math.prod(stored) * width, raw_dtype=kinds[key])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, value_of in tensors:
            writer.write_tensor_data(_stored(key, value_of(), kinds[key]))
    finally:
        writer.close()


def _num_embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _add_sizes(writer: GGUFWriter, config: Any, architecture: Architecture) -> None:
    size = head_size(config)
    rotary = rotary_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rotary["rope_theta"])
    if rotary.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])


def _kind_of(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """How a tensor is stored: vectors in f32, rows that don't divide into blocks in f16, as llama.cpp's converter."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % Q8_BLOCK:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[kind.upper()]


def _is_packed(kind: GGMLQuantizationType) -> bool:
    """Whether numpy has no dtype for it."""
    return kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


def _stored(key: str, value: Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    wide = value.detach().float().cpu().contiguous().numpy()
    with np.errstate(over="ignore"):
        stored: np.ndarray[Any, Any] = quantize(wide, kind)
    if kind == GGMLQuantizationType.F16 and not np.isfinite(stored).all():
        raise ModelError(f"{key} has values that f16 can't hold. Use gguf_type=bf16, f32 or q8_0.")
    return stored
