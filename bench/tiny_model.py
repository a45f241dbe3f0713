"""A tiny llama with random weights and the demo model's tokenizer, which shows a server's overhead.

Usage: `python -m mlxfleet.bench.tiny_model OUT [--seed 0]`

Its forward pass costs so little that what is left is the server's own work. Written without mlx,
which only the MLX worker may import.
"""

from __future__ import annotations

import array
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cyclopts

from mlxfleet.common.demo_model import ensure_demo_model, refuse_if_taken
from mlxfleet.common.errors import MlxfleetError

LAYERS = 2
HIDDEN = 64
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
INTERMEDIATE = 128
VOCABULARY = 49152
CONTEXT = 8192
SPECIAL_TOKENS = 17
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

# With tied embeddings and 64 unit-variance activations, logits have a standard deviation of
# 8 * EMBEDDING_STD: about 3, so that sampling at temperature 1 is neither greedy nor uniform.
EMBEDDING_STD = 0.4
# The end-of-sequence token is among the special ones; with small logits it is hardly ever chosen.
SPECIAL_STD = 0.01
# Attention scores have a standard deviation of about 4: it picks tokens, also in a long context.
QUERY_KEY_STD = 0.25
LINEAR_STD = 0.125

Shape = tuple[int, ...]


def write_tiny_model(out: Path, seed: int = 0) -> None:
    """Write the MLX folder `out`, which must be empty or not exist; the same seed, the same bytes.

    Takes the tokenizer from the cached demo model and raises what `ensure_demo_model` raises, and
    ConfigError if `out` is taken.
    """
    refuse_if_taken(out)
    demo = ensure_demo_model()
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(demo / name, out / name)
    (out / "config.json").write_text(json.dumps(model_config(), indent=2) + "\n")
    save_safetensors(out / "model.safetensors", dict(random_weights(seed)))


def model_config() -> dict[str, object]:
    """What config.json says."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def random_weights(seed: int) -> Iterator[tuple[str, tuple[Shape, array.array[float]]]]:
    """Names, shapes and float32 values of all tensors, row-major."""
    rng = random.Random(seed)

    def normal(std: float, *shape: int) -> tuple[Shape, array.array[float]]:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return shape, array.array("f", (rng.gauss(0.0, std) for _ in range(count)))

    def ones() -> tuple[Shape, array.array[float]]:
        return (HIDDEN,), array.array("f", [1.0]) * HIDDEN

    special = normal(SPECIAL_STD, SPECIAL_TOKENS, HIDDEN)[1]
    ordinary = normal(EMBEDDING_STD, VOCABULARY - SPECIAL_TOKENS, HIDDEN)[1]
    yield "model.embed_tokens.weight", ((VOCABULARY, HIDDEN), special + ordinary)
    # Random signs here keep tied embeddings from always favouring the token that was just read.
    yield "model.norm.weight", normal(1.0, HIDDEN)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        query, key_value = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        yield f"{block}.input_layernorm.weight", ones()
        yield f"{block}.self_attn.q_proj.weight", normal(QUERY_KEY_STD, query, HIDDEN)
        yield f"{block}.self_attn.k_proj.weight", normal(QUERY_KEY_STD, key_value, HIDDEN)
        yield f"{block}.self_attn.v_proj.weight", normal(LINEAR_STD, key_value, HIDDEN)
        yield f"{block}.self_attn.o_proj.weight", normal(LINEAR_STD, HIDDEN, query)
        yield f"{block}.post_attention_layernorm.weight", ones()
        yield f"{block}.mlp.gate_proj.weight", normal(LINEAR_STD, INTERMEDIATE, HIDDEN)
        yield f"{block}.mlp.up_proj.weight", normal(LINEAR_STD, INTERMEDIATE, HIDDEN)
        yield f"{block}.mlp.down_proj.weight", normal(LINEAR_STD, HIDDEN, INTERMEDIATE)


def save_safetensors(path: Path, tensors: dict[str, tuple[Shape, array.array[float]]]) -> None:
    """Write float32 tensors: the header's length (8 bytes), the header (JSON), the data.

    The format is documented in the README of huggingface/safetensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (shape, values) in tensors.items():
        start, end = end, end + len(values) * values.itemsize
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors.values():
            values.tofile(file)


def main(out: Path, *, seed: int = 0) -> None:
    """Write the tiny random model.

    Parameters
    ----------
    out:
        Folder to write; empty or not there yet.
    seed:
        Seed of the random weights.
    """
    try:
        write_tiny_model(out, seed)
    except MlxfleetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    cyclopts.run(main)
