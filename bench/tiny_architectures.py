"""Configurations and random weights of tiny models, one for each way in which rows remember:
keys and values of all tokens (llama), of a window (gemma3_text), a recurrent state (qwen3_next).

Written without mlx, which only the MLX worker may import. Names and shapes are those of mlx-lm.
"""

from __future__ import annotations

import array
import random
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Architecture = Literal["llama", "gemma3_text", "qwen3_next"]
Shape = tuple[int, ...]
Tensor = tuple[str, tuple[Shape, "array.array[float]"]]

LAYERS = 2
HIDDEN = 64
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
INTERMEDIATE = 128
VOCABULARY = 49152
CONTEXT = 8192
SPECIAL_TOKENS = 17

# With tied embeddings and 64 unit-variance activations, logits have a standard deviation of
# 8 * EMBEDDING_STD: about 3, so that sampling at temperature 1 is neither greedy nor uniform.
EMBEDDING_STD = 0.4
# The end-of-sequence token is among the special ones; with small logits it is hardly ever chosen.
SPECIAL_STD = 0.01
# Attention scores have a standard deviation of about 4: it picks tokens, also in a long context.
QUERY_KEY_STD = 0.25
LINEAR_STD = 0.125

# Smaller than most answers, so that they leave it behind.
WINDOW = 48
# Sliding, sliding, full; or recurrent, recurrent, full.
PATTERN = 3
EXPERTS = 4
EXPERT_INTERMEDIATE = 32
LINEAR_KEY_HEADS = 2
LINEAR_VALUE_HEADS = 4
# mlx-lm's CPU kernel of the recurrence needs a multiple of 32.
LINEAR_KEY_DIM = 32
LINEAR_VALUE_DIM = 16
CONVOLUTION = 4


class Part(NamedTuple):
    """A tensor to fill with normally distributed numbers; a `std` of 0 gives a constant."""

    name: str
    shape: Shape
    std: float
    mean: float = 0.0


def model_config(architecture: Architecture) -> dict[str, object]:
    """What config.json says."""
    return {
        "model_type": architecture,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **OWN_CONFIG[architecture],
    }


OWN_CONFIG: dict[Architecture, dict[str, object]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "hidden_act": "silu",
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": PATTERN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": WINDOW,
        "sliding_window_pattern": PATTERN,
    },
    "qwen3_next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "num_hidden_layers": PATTERN,
        "full_attention_interval": PATTERN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.5,
        "linear_num_key_heads": LINEAR_KEY_HEADS,
        "linear_num_value_heads": LINEAR_VALUE_HEADS,
        "linear_key_head_dim": LINEAR_KEY_DIM,
        "linear_value_head_dim": LINEAR_VALUE_DIM,
        "linear_conv_kernel_dim": CONVOLUTION,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": EXPERT_INTERMEDIATE,
        "shared_expert_intermediate_size": EXPERT_INTERMEDIATE,
    },
}


def random_weights(architecture: Architecture, seed: int) -> Iterator[Tensor]:
    """Names, shapes and float32 values of all tensors, row-major."""
    rng = random.Random(seed)
    special = filled(rng, (SPECIAL_TOKENS, HIDDEN), SPECIAL_STD)
    ordinary = filled(rng, (VOCABULARY - SPECIAL_TOKENS, HIDDEN), EMBEDDING_STD)
    yield "model.embed_tokens.weight", ((VOCABULARY, HIDDEN), special + ordinary)
    for part in PARTS[architecture]():
        yield part.name, (part.shape, filled(rng, part.shape, part.std, part.mean))


def filled(rng: random.Random, shape: Shape, std: float, mean: float = 0.0) -> array.array[float]:
    """Numbers for a tensor of this shape."""
    count = 1
    for size in shape:
        count *= size
    if std == 0:
        return array.array("f", [mean]) * count
    return array.array("f", (rng.gauss(mean, std) for _ in range(count)))


def llama_parts() -> Iterator[Part]:
    """All but the embedding."""
    # Random signs here keep tied embeddings from always favouring the token that was just read.
    yield Part("model.norm.weight", (HIDDEN,), 1.0)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield ones(f"{block}.input_layernorm", HIDDEN)
        yield from attention(block, HEADS * HEAD_DIM)
        yield ones(f"{block}.post_attention_layernorm", HIDDEN)
        yield from swiglu(f"{block}.mlp", INTERMEDIATE)


def gemma3_parts() -> Iterator[Part]:
    """All but the embedding. Its norms add 1 to their weights."""
    yield Part("model.norm.weight", (HIDDEN,), 1.0, -1.0)
    for layer in range(PATTERN):
        block = f"model.layers.{layer}"
        for name in ("input", "pre_feedforward"):
            yield Part(f"{block}.{name}_layernorm.weight", (HIDDEN,), 0.1)
        # As large as the scaled embeddings, so that the context matters and greedy does not loop.
        for name in ("post_attention", "post_feedforward"):
            yield Part(f"{block}.{name}_layernorm.weight", (HIDDEN,), 0.1, 5.0)
        yield from attention(block, HEADS * HEAD_DIM)
        for name in ("q_norm", "k_norm"):
            yield Part(f"{block}.self_attn.{name}.weight", (HEAD_DIM,), 0.1)
        yield from swiglu(f"{block}.mlp", INTERMEDIATE)


def qwen3_next_parts() -> Iterator[Part]:
    """All but the embedding."""
    yield Part("model.norm.weight", (HIDDEN,), 1.0)
    for layer in range(PATTERN):
        block = f"model.layers.{layer}"
        yield ones(f"{block}.input_layernorm", HIDDEN)
        if (layer + 1) % PATTERN:
            yield from delta_net(f"{block}.linear_attn")
        else:
            # Half of the query's projection is the gate of the output.
            yield from attention(block, 2 * HEADS * HEAD_DIM)
            yield ones(f"{block}.self_attn.q_norm", HEAD_DIM)
            yield ones(f"{block}.self_attn.k_norm", HEAD_DIM)
        yield ones(f"{block}.post_attention_layernorm", HIDDEN)
        yield from experts(f"{block}.mlp")


def ones(name: str, size: int) -> Part:
    """A norm's weight."""
    return Part(f"{name}.weight", (size,), 0.0, 1.0)


def attention(block: str, query: int) -> Iterator[Part]:
    """The projections of a layer with attention; `query` is the height of the query's."""
    key_value = KV_HEADS * HEAD_DIM
    yield Part(f"{block}.self_attn.q_proj.weight", (query, HIDDEN), QUERY_KEY_STD)
    yield Part(f"{block}.self_attn.k_proj.weight", (key_value, HIDDEN), QUERY_KEY_STD)
    yield Part(f"{block}.self_attn.v_proj.weight", (key_value, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM), LINEAR_STD)


def swiglu(block: str, width: int) -> Iterator[Part]:
    """A feed-forward layer with a gate."""
    yield Part(f"{block}.gate_proj.weight", (width, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.up_proj.weight", (width, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.down_proj.weight", (HIDDEN, width), LINEAR_STD)


def experts(block: str) -> Iterator[Part]:
    """A mixture of experts and the shared one, as mlx-lm stores them after loading."""
    wide, narrow = (EXPERTS, EXPERT_INTERMEDIATE, HIDDEN), (EXPERTS, HIDDEN, EXPERT_INTERMEDIATE)
    yield Part(f"{block}.gate.weight", (EXPERTS, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.switch_mlp.gate_proj.weight", wide, LINEAR_STD)
    yield Part(f"{block}.switch_mlp.up_proj.weight", wide, LINEAR_STD)
    yield Part(f"{block}.switch_mlp.down_proj.weight", narrow, LINEAR_STD)
    yield from swiglu(f"{block}.shared_expert", EXPERT_INTERMEDIATE)
    yield Part(f"{block}.shared_expert_gate.weight", (1, HIDDEN), LINEAR_STD)


def delta_net(block: str) -> Iterator[Part]:
    """A gated delta network. Its decay is slow enough to remember some tens of tokens."""
    keys, values = LINEAR_KEY_HEADS * LINEAR_KEY_DIM, LINEAR_VALUE_HEADS * LINEAR_VALUE_DIM
    channels = 2 * keys + values
    yield Part(f"{block}.in_proj_qkvz.weight", (2 * keys + 2 * values, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.in_proj_ba.weight", (2 * LINEAR_VALUE_HEADS, HIDDEN), LINEAR_STD)
    yield Part(f"{block}.conv1d.weight", (channels, CONVOLUTION, 1), 0.5)
    yield Part(f"{block}.dt_bias", (LINEAR_VALUE_HEADS,), 0.0, -3.0)
    yield Part(f"{block}.A_log", (LINEAR_VALUE_HEADS,), 0.0, 0.0)
    yield ones(f"{block}.norm", LINEAR_VALUE_DIM)
    yield Part(f"{block}.out_proj.weight", (HIDDEN, values), LINEAR_STD)


PARTS: dict[Architecture, Callable[[], Iterator[Part]]] = {
    "llama": llama_parts,
    "gemma3_text": gemma3_parts,
    "qwen3_next": qwen3_next_parts,
}
