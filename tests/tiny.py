"""Tiny random models of every decoder-only family that transformers knows: one table of settings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from linearpatch.models.auto import auto_class

NUM_LAYERS = 8
VOCABULARY = 300

# Set in whatever configuration has a field of that name (and a value in it): sizes, not behaviour.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), NUM_LAYERS),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embedding_dim", "emb_dim", "dim_model", "embedding_size"), 32
    ),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "linear_num_heads", "linear_num_value_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "attention_head_size"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "dff", "dim_ff", "d_inner", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("dense_intermediate_size", "block_ff_dim", "ffn_hidden_size", "feed_forward_size", "n_inner"), 48),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size", "moe_intermediate_size"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "router_hidden_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "zero_expert_num"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "gated_norm_rank", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("qk_head_dim",), 12),
    **dict.fromkeys(("v_head_dim", "query_pre_attn_scalar", "laurel_rank", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), 256),
    **dict.fromkeys(("original_max_position_embeddings", "model_max_length", "max_target_positions"), 256),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("attention_chunk_size", "local_attention"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "d_rel"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), 8),
    **dict.fromkeys(("mamba_d_ssm", "attention_hidden_size"), 64),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), NUM_LAYERS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
}

# Encoders of images and sounds: two layers, a small picture.
SMALL_ENCODER: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "num_blocks", "num_layers"), 2),
    **dict.fromkeys(("image_size",), 28),
    **dict.fromkeys(("patch_size",), 14),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "projection_dim", "output_dim"), 32),
}

# What a family needs beside them. None leaves a field as the family's configuration has it.
MLA = {"num_key_value_heads": 4, "head_dim": 4}
HEADS = {"head_dim": 8}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
MROPE = {"rope_parameters": ROPE}
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32"), MLA),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash", "minicpm3", "youtu"), MLA),
    "bailing_hybrid": {**MLA, "layer_types": ["linear_attention", "full_attention"] * (NUM_LAYERS // 2)},
    "bamba": {"attn_layer_indices": [2, 4, 6]},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * (NUM_LAYERS // 2),
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
    },
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**MLA, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1},
    "dots3_note_text": {**MLA, "head_dim": 12, "per_layer_config": {}},
    **{family: {"pad_token_id": 0} for family in ("emu3", "llama4", "dots3_note")},
    "ernie4_5_moe": {"moe_layer_start_index": 3, "moe_layer_end_index": 6},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], NUM_LAYERS // 2]]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), HEADS),
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * (NUM_LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (NUM_LAYERS // 2)},
    "lfm2": {"full_attn_idxs": [2, 4, 6], "block_auto_adjust_ff_dim": False},
    "nemotron": {**HEADS, "num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * (NUM_LAYERS // 4)},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), MROPE),
    "qwen2_5_vl_vision": {"window_size": 56},
    "pixtral": {"image_size": 56},
    "llama4_vision_model": {
        "intermediate_size": 128,  # four patches of 32 in one row
        **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * (NUM_LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}


def config_of(family: str, **changes: Any) -> Any:
    """The configuration of a tiny model of a family."""
    cls = CONFIG_MAPPING[family]
    settings = _small(cls, SMALL) | SETTINGS.get(family, {}) | changes
    return cls(**{name: value for name, value in settings.items() if value is not None})


def _small(cls: Any, small: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration class that `small` has a value for; its parts, too."""
    try:
        default = cls().to_dict()
    except Exception:
        return {name: value for name, value in small.items() if name in inspect.signature(cls.__init__).parameters}
    settings = {name: value for name, value in small.items() if default.get(name) is not None}
    for name, part in default.items():
        if isinstance(part, dict) and part.get("model_type") in CONFIG_MAPPING:
            encoder = any(word in name for word in ("vision", "audio", "image", "encoder"))
            kind = part["model_type"]
            own = _small(CONFIG_MAPPING[kind], SMALL | (SMALL_ENCODER if encoder else {})) | SETTINGS.get(kind, {})
            settings[name] = {field: value for field, value in own.items() if value is not None}
    return settings


def model_of(family: str, **changes: Any) -> Any:
    """A tiny random model of a family, in evaluation, whose layers differ and do something."""
    config = config_of(family, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class(config).from_config(config)
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                parameter.data.mul_(3)
            else:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(False)
