"""Loading a model through mlx-lm and finding out what it costs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import psutil
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlxfleet.common.config import WorkerOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.common.messages import ModelInfo
from mlxfleet.workers.kv import measure

log = logging.getLogger(__name__)

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
)
DEFAULT_CONTEXT = 32_768
MEMORY_SHARE = 0.5
ACTIVATION_SHARE = 0.1
BUFFER_CACHE_SHARE = 0.05
PROBE_TOKENS = [1, 2, 3]
# What mlx-lm and MLX raise for a bad folder, or for a model that this machine cannot run.
CAUSES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_model(folder: Path, options: WorkerOptions) -> tuple[Any, ModelInfo]:
    """Load a model folder, set MLX's memory limits, measure. ModelError if any of it fails."""
    limit_bytes = memory_limit_bytes(options)
    try:
        model, config = mlx_lm.utils.load_model(folder, trust_remote_code=options.trust_remote_code)
    except CAUSES as error:
        raise ModelError(f"mlx-lm cannot load {folder}: {error}") from error
    set_memory_limits(limit_bytes)
    parameters: Any = tree_flatten(model.parameters())
    weights_bytes = sum(array.nbytes for _, array in parameters)
    cache = make_prompt_cache(model)
    try:
        logits = model(mx.array([PROBE_TOKENS]), cache=cache)
        mx.eval(logits, [layer.state for layer in cache])
    except CAUSES as error:
        raise ModelError(f"{folder.name} does not run on this machine: {error}") from error
    fixed, per_token, windowed = measure(cache)
    budget = int((limit_bytes - weights_bytes) * (1 - ACTIVATION_SHARE))
    info = ModelInfo(
        vocab_size=logits.shape[-1],
        context_length=context_length(config, options),
        eos_ids=sorted(eos_ids(folder, config)),
        kv_budget_bytes=budget,
        fixed_bytes=fixed,
        bytes_per_token=per_token,
        windowed=windowed,
        weights_bytes=weights_bytes,
    )
    if budget < info.kv_bytes(1):
        raise ModelError(
            f"{folder.name} has {weights_bytes / 1e9:.2f} GB of weights, which leaves no room for"
            f" a KV cache under the limit of {limit_bytes / 1e9:.2f} GB; see --memory-gb"
        )
    return model, info


def memory_limit_bytes(options: WorkerOptions) -> int:
    """Bytes that weights and KV cache may take together."""
    if options.memory_gb is not None:
        return int(options.memory_gb * 1e9)
    if mx.metal.is_available():
        # Metal only, not yet run on hardware.
        return int(mx.device_info()["max_recommended_working_set_size"])
    return int(psutil.virtual_memory().total * MEMORY_SHARE)


def set_memory_limits(limit_bytes: int) -> None:
    """Bound MLX's allocator and its cache of free buffers."""
    mx.set_memory_limit(limit_bytes)
    mx.set_cache_limit(int(limit_bytes * BUFFER_CACHE_SHARE))
    if mx.metal.is_available():
        # Metal only, not yet run on hardware.
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(limit_bytes, recommended))


def context_length(config: dict[str, Any], options: WorkerOptions) -> int:
    """Longest sequence in tokens that the model was made for, or that the options allow."""
    places = (config, config.get("text_config") or {})
    found = (place[key] for place in places for key in CONTEXT_KEYS if place.get(key))
    length = int(next(found, DEFAULT_CONTEXT))
    return min(length, options.max_context or length)


def eos_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    """Every token id that ends a sequence, from the model's configuration and tokenizer's."""
    configured = config.get("eos_token_id")
    if configured is None:
        configured = (config.get("text_config") or {}).get("eos_token_id")
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    return ids | tokenizer_eos_ids(folder)


def tokenizer_eos_ids(folder: Path) -> set[int]:
    """The id of the tokenizer's `eos_token`, if the folder's files tell."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
    except (OSError, ValueError):
        return set()
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return {added["id"] for added in tokenizer.get("added_tokens", []) if added["content"] == text}
