"""What the simulated engine knows of a model: its folder's configuration, and the options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxfleet.common.config import SimOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import ModelInfo
from mlxfleet.common.model_config import (
    context_length,
    eos_ids,
    read_config,
    text_config,
    vocab_size,
)
from mlxfleet.workers.sim_times import SimTimes

DEFAULT_HEAD_DIM = 64


def sim_model(folder: Path, options: SimOptions, max_context: int | None) -> ModelInfo:
    """A model that is not loaded; ModelError if the folder does not say what is needed."""
    config = read_config(folder)
    size = vocab_size(config)
    if size is None or size <= len(ends := eos_ids(folder, config)):
        raise ModelError(f"{folder}/config.json has no usable vocab_size: {size!r}")
    per_token = kv_bytes_per_token(config)
    return ModelInfo(
        vocab_size=size,
        context_length=context_length(config, max_context),
        eos_ids=sorted(ends),
        kv_budget_bytes=options.sim_kv_tokens * per_token,
        fixed_bytes=0,
        bytes_per_token=per_token,
        windowed=[],
        weights_bytes=sum(file.stat().st_size for file in folder.glob("model*.safetensors")),
        in_slabs=True,
        cold_blocks=options.sim_cache_tokens // BLOCK_TOKENS,
        passes=SimTimes.of(options).passes(),
    )


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """Bytes of keys and values of one token, as an ordinary transformer of this size has them."""
    text = text_config(config)

    def number(*names: str, default: int) -> int:
        return int(next((text[name] for name in names if text.get(name)), default))

    layers = number("num_hidden_layers", "n_layer", default=1)
    heads = number("num_attention_heads", "n_head", default=1)
    width = number("hidden_size", "n_embd", default=heads * DEFAULT_HEAD_DIM)
    head_dim = number("head_dim", default=max(1, width // heads))
    kv_heads = number("num_key_value_heads", default=heads)
    kind = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype"))
    return 2 * layers * kv_heads * head_dim * (4 if "float32" in kind else 2)
