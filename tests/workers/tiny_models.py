"""Tiny random float32 models of mlx-lm's text architectures, built without any files.

One dictionary of small values serves them all, because `ModelArgs.from_dict` takes the fields
that an architecture knows; OVERRIDES holds what differs.
"""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

VOCAB_SIZE = 120
WINDOW = 12
LAYERS = 2
HIDDEN = 32
HEADS = 4
HEAD_DIM = 8

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "sliding_window_pattern": 2,
    "attention_window_size": WINDOW,
    "tie_word_embeddings": False,
    "norm_eps": 1e-5,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "post_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 100.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 4,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    # The same things by other names.
    "n_embd": HIDDEN,
    "n_inner": 48,
    "n_head": HEADS,
    "n_kv_heads": 2,
    "n_layer": LAYERS,
    "n_ctx": 512,
    "n_positions": 512,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "num_kv_heads": 2,
    "d_model": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_shared_expert": 1,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "share_expert_dim": 24,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "mlp_only_layers": [],
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    # Multi-head latent attention, and the indexer of its sparse form.
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 16,
    # Recurrent layers.
    "state_size": 8,
    "ssm_state_size": 8,
    "conv_kernel": 3,
    "use_conv_bias": True,
    "conv_bias": True,
    "conv_L_cache": 3,
    "n_groups": 2,
    "time_step_rank": 4,
    "time_step_limit": (0.001, 10.0),
    "mamba_d_ssm": 32,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_d_conv": 3,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_expand": 2,
    "mamba_proj_bias": False,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
    "full_attention_interval": 2,
    "layer_group_size": 2,
    "group_norm_size": 1,
}

ROPE = {"rope_type": "default", "rope_theta": 1000.0}
ROPE_PER_LAYER_TYPE = {"rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE}}
YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32,
    "llama_4_scaling_beta": 0.5,
}
MULTIPLIERS = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 0.35,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
MINICPM = {"dim_model_base": HIDDEN, "scale_depth": 1.4, "scale_emb": 1.0}
DELTA_ATTENTION = {
    "linear_attn_config": {
        "num_heads": 2,
        "head_dim": 32,
        "short_conv_kernel_size": 3,
        "kda_layers": [1],
    }
}
LFM2 = {
    "block_dim": HIDDEN,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "num_dense_layers": 1,
    "use_expert_bias": True,
    "layer_types": ["conv", "full_attention"],
}
LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 24,
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}

# What differs from COMMON. Every fourth layer of Llama 4 has full attention, so it needs four.
OVERRIDES: dict[str, dict[str, Any]] = {
    "afm7": {"hidden_dim": HIDDEN, "num_layers": 3, "num_kv_reuse_layers": 1},
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1000.0},
    },
    "deepseek_v2": {"topk_method": "greedy", "rope_scaling": YARN},
    "deepseek_v41": {
        "head_dim": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "compress_ratios": (1, 4),
        "kv_source_layer_ids": (0, 1),
        "index_source_layer_ids": (0, 1),
        "index_head_dim": 32,
        "hc_sinkhorn_iters": 4,
    },
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"is_moe_layer": [False, True]},
    "gemma3n": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "final_logit_softcapping": 30.0,
        "altup_num_inputs": 2,
        "altup_coef_clip": 1.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
    },
    "glm_moe_dsa": {"rope_parameters": ROPE},
    "gpt_neox": {"rotary_emb_base": 1000, "rotary_pct": 0.5},
    "granite": MULTIPLIERS,
    "granitemoe": MULTIPLIERS,
    "granitemoehybrid": {**MULTIPLIERS, "layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 50.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {**DELTA_ATTENTION, "attn_res_block_size": 2, "hidden_act": "situ"},
    "kimi_linear": {**DELTA_ATTENTION, "model_max_length": 512},
    "lfm2": LFM2,
    "lfm2_moe": LFM2,
    "lille-130m": {"block_size": 512, "n_embd": 96},
    "llama": {"layer_types": None},
    "llama4": {
        "num_hidden_layers": 4,
        "attention_chunk_size": WINDOW,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
    },
    "llama4_text": {"intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": LONGCAT,
    "mellum": ROPE_PER_LAYER_TYPE,
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_rope_theta": 100.0,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
    },
    "minicpm": MINICPM,
    "minicpm3": {**MINICPM, "rope_scaling": {}},
    "minimax_m3_vl": {
        "moe_layer_freq": [0, 1],
        "sparse_attention_freq": [0, 1],
        "index_block_size": 4,
        "index_topk_blocks": 3,
    },
    "ministral3": {"rope_parameters": YARN},
    "mistral4": {"rope_parameters": YARN},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}] * 2
    },
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*", "-", "E", "M"],
        "moe_shared_expert_intermediate_size": 24,
        "layer_types": None,
    },
    "olmo_hybrid": {
        "linear_allow_neg_eigval": True,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "openelm": {
        "num_transformer_layers": LAYERS,
        "model_dim": HIDDEN,
        "ffn_dim_divisor": 8,
        "num_query_heads": [HEADS] * LAYERS,
        "num_kv_heads": [2] * LAYERS,
        "ffn_multipliers": [1.0, 2.0],
    },
    "phixtral": {"num_vocab": VOCAB_SIZE, "model_dim": HIDDEN},
    "plamo": {"n_shared_head": 2},
    "plamo2": {"hidden_size_per_head": HEAD_DIM},
    # Its window is one token shorter across prefill chunks and decode steps than within one
    # chunk, also in mlx-lm alone (compare prefill_step_size 2048 and 7): keep it out of sight.
    "plamo3": {"layer_types": None, "sliding_window": 512},
    "qwen": {"kv_channels": HEAD_DIM},
    "recurrent_gemma": {
        "conv1d_width": 3,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "spark2_5": ROPE_PER_LAYER_TYPE,
    "stablelm": {"use_qkv_bias": True},
    "step3p5": {"num_attention_groups": 2, "moe_layers_enum": "1"},
    # Models that wrap another one.
    "gemma3": {"model_type": "gemma3_text"},
    "gemma4": {"model_type": "gemma4_text"},
    "lfm2-vl": {"model_type": "lfm2"},
}

# Not covered. bitnet, muse_spark: need Metal. phi3small: writes to fixed token ids above 100,000.
# prism_hadamard_qwen35: needs weights packed in 2 bits. olmo: needs another package.


def build(name: str, **changes: Any) -> Any:
    """A model with random float32 weights, always the same; `changes` to its configuration."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    own = OVERRIDES.get(name, {})
    inner = own.get("model_type", name)
    config = {**COMMON, **OVERRIDES.get(inner, {}), **own, **changes, "model_type": inner}
    arguments = module.ModelArgs.from_dict({**config, "model_type": name, "text_config": config})
    mx.random.seed(0)
    model = module.Model(arguments)
    randomize(model)
    mx.eval(model.parameters())
    model.eval()
    return model


def randomize(model: nn.Module) -> None:
    """Replace all weights by noise large enough that every part of a model matters."""
    parameters: Any = tree_flatten(model.parameters())
    noisy = [(path, noise(path, array)) for path, array in parameters]
    model.update(tree_unflatten(noisy))


def noise(path: str, array: mx.array) -> mx.array:
    """A matrix becomes a random one; a norm's weight or a bias stays about what it is."""
    if not mx.issubdtype(array.dtype, mx.floating) or path.endswith("A_log"):
        return array
    if array.ndim < 2:
        return array.astype(mx.float32) + 0.1 * mx.random.normal(array.shape)
    if "embed" in path or "wte" in path:
        return 0.15 * mx.random.normal(array.shape)
    return mx.random.normal(array.shape) * (2.0 / array.shape[-1] ** 0.5)
