"""Write a model as a GGUF file, a tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    architecture_of,
    context_length,
    head_size,
    outer_tensors,
    rotary_of,
)
from linearpatch.checkpoint.gguf.layers import LayerSizes, check_order, sizes_of, tensors_of
from linearpatch.checkpoint.gguf.vocabulary import vocabulary_of
from linearpatch.checkpoint.new_layers import LayeredModel
from linearpatch.errors import ModelError
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


def check_tokenizer(model: LoadedModel) -> None:
    """Reject early a tokenizer that llama.cpp has no equivalent for.

    Raises:
        ModelError: names what it lacks.
    """
    vocabulary_of(model.tokenizer, _num_embeddings(model.decoder.model))


def write_gguf(
    path: Path, layered: LayeredModel, tokenizer: Any, *, gguf_type: str, name: str, texts: dict[str, str]
) -> None:
    """Write a model that is stock weights, and operators that are layers of their own.

    Args:
        path: The file; nothing is there.
        layered: Of a family that `architecture_of` knows.
        tokenizer: Its tokenizer.
        gguf_type: Of its matrices: `f32`, `f16`, `bf16`, `q8_0`, or `auto`, which is the model's own.
        name: Of the model.
        texts: More metadata, by key.

    Raises:
        ModelError: llama.cpp would compute something else.
    """
    model, config = layered.model, layered.config
    architecture = architecture_of(config, mixed_layers=layered.has_mixed_layers)
    sizes = [sizes_of(layer, config) for layer in layered.layers]
    check_order(sizes)
    kind = TYPE_OF_DTYPE[model.dtype] if gguf_type == "auto" else gguf_type
    vocabulary = vocabulary_of(tokenizer, _num_embeddings(model))
    writer = GGUFWriter(path, architecture.name)
    try:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_sizes(writer, config, sizes)
        vocabulary.add_to(writer)
        for key, text in texts.items():
            writer.add_string(key, text)
        tensors = [*outer_tensors(model, config)]
        for index, layer in enumerate(layered.layers):
            tensors += tensors_of(layer, index, architecture, config)
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


def _add_sizes(writer: GGUFWriter, config: Any, layers: Sequence[LayerSizes]) -> None:
    size = head_size(config)
    rotary = rotary_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(_common([layer.width for layer in layers]))
    writer.add_head_count(_common([layer.heads for layer in layers]))
    writer.add_head_count_kv(_common([layer.key_value_heads for layer in layers]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rotary["rope_theta"])
    if rotary.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])


def _common(values: list[int]) -> int | list[int]:
    """One number where all layers have the same, as stock architectures write it."""
    return values[0] if len(set(values)) == 1 else values


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
