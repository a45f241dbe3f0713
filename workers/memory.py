"""Where the worker's memory goes, decided before any of it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import psutil

from mlxfleet.common.config import WorkerOptions
from mlxfleet.common.errors import ModelError
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import Sampling
from mlxfleet.workers import cpu_math
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.row import Chunk, Row
from mlxfleet.workers.sampling import SamplingRow

MEMORY_SHARE = 0.5
PREFIX_CACHE_SHARE = 0.25
# Passes of so many prompt tokens are measured, and larger ones extrapolated from them.
PROBE_LENGTHS = (16, 64)
# Arrays [rows, vocabulary] of 4 bytes that sampling holds at once.
SAMPLING_ARRAYS = 5
# Arrays of scores of 4 bytes that attention holds at once where it is not fused.
SCORE_ARRAYS = 12
LEAST_BUFFER_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Shares of `limit_bytes`, in bytes. `activations` are those of the largest pass."""

    limit_bytes: int
    weights_bytes: int
    activation_bytes: int
    prefix_cache_bytes: int

    @property
    def kv_bytes(self) -> int:
        """What is left for sequences that run."""
        used = self.weights_bytes + self.activation_bytes + self.prefix_cache_bytes
        return self.limit_bytes - used

    def table(self, bytes_per_token: int) -> list[str]:
        """Lines to read."""
        lines = [
            ("weights", self.weights_bytes, ""),
            ("activations", self.activation_bytes, "largest pass, and sampling"),
            (
                "prefix cache",
                self.prefix_cache_bytes,
                tokens(self.prefix_cache_bytes, bytes_per_token),
            ),
            ("KV cache", self.kv_bytes, tokens(self.kv_bytes, bytes_per_token)),
            ("limit", self.limit_bytes, "--memory-gb"),
        ]
        return [f"{name:<13}{size / 1e9:9.3f} GB  {note}".rstrip() for name, size, note in lines]


def tokens(size: int, bytes_per_token: int) -> str:
    """How many tokens fit."""
    return f"{size // bytes_per_token} tokens" if bytes_per_token else ""


def plan_memory(
    options: WorkerOptions,
    *,
    limit_bytes: int,
    weights_bytes: int,
    activation_bytes: int,
    block_bytes: int,
) -> MemoryPlan:
    """Share the limit out; a block of the prefix cache takes `block_bytes`, 0 if there is none."""
    left = limit_bytes - weights_bytes - activation_bytes
    wanted = left * PREFIX_CACHE_SHARE
    if options.prefix_cache_gb is not None:
        wanted = options.prefix_cache_gb * 1e9
        if wanted and not block_bytes:
            raise ModelError(
                "--prefix-cache-gb: prefixes cannot be reused with this model, because it remembers"
                " more than keys and values of all tokens; start without it, or with 0"
            )
    blocks = int(max(wanted, 0)) // block_bytes if block_bytes else 0
    return MemoryPlan(
        limit_bytes=limit_bytes,
        weights_bytes=weights_bytes,
        activation_bytes=activation_bytes,
        prefix_cache_bytes=blocks * block_bytes,
    )


def block_bytes(bytes_per_token: int) -> int:
    """Bytes of one block of the prefix cache."""
    return BLOCK_TOKENS * bytes_per_token


def memory_limit_bytes(options: WorkerOptions, machine_share: float = 1.0) -> int:
    """Bytes that the worker may take: what is asked for, or its share of what the machine has."""
    if options.memory_gb is not None:
        return int(options.memory_gb * 1e9)
    if mx.metal.is_available():
        # Metal only, not yet run on hardware.
        return int(mx.device_info()["max_recommended_working_set_size"])
    return int(psutil.virtual_memory().total * MEMORY_SHARE * machine_share)


def set_memory_limits(limit_bytes: int, activation_bytes: int) -> None:
    """Bound MLX's allocator, and its cache of free buffers to what a pass needs."""
    mx.set_memory_limit(limit_bytes)
    mx.set_cache_limit(max(activation_bytes, LEAST_BUFFER_CACHE_BYTES))
    if mx.metal.is_available():
        # Metal only, not yet run on hardware.
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(limit_bytes, recommended))


def measure_activations(
    storage: KVStorage,
    config: dict[str, Any],
    *,
    max_chunk_tokens: int,
    max_running: int,
    vocab_size: int,
    context_length: int,
) -> int:
    """Bytes that the largest pass needs beside weights and caches: what two small passes need,
    extrapolated, and what they are too small to show."""
    short, long = (pass_bytes(storage, length) for length in PROBE_LENGTHS)
    per_token = max(0.0, (long - short) / (PROBE_LENGTHS[1] - PROBE_LENGTHS[0]))
    flat_tokens = max_chunk_tokens + max_running
    measured = max(short, 0) + per_token * flat_tokens
    sampling = SAMPLING_ARRAYS * 4 * max_running * vocab_size
    scores = 0
    if not mx.metal.is_available():
        # Metal's attention is fused and has none; one query's are computed at once at least.
        text = config.get("text_config") or config
        heads = int(text.get("num_attention_heads") or text.get("n_head") or 1)
        scores = SCORE_ARRAYS * 4 * max(cpu_math.SCORES_AT_ONCE, heads * context_length)
    return int(measured) + sampling + scores


def pass_bytes(storage: KVStorage, length: int) -> int:
    """Most bytes in use during a pass of `length` prompt tokens. Leaves the storage empty."""
    ids = [index % 2 for index in range(length + 1)]
    row = Row("", ids, SamplingRow(Sampling(seed=0, max_tokens=1), ids, 0))
    storage.add(row)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = storage.run([row], mx.array(ids[-1:], dtype=mx.uint32), [Chunk(row, ids[:-1])])
    mx.eval(result.logits, result.arrays)
    used = mx.get_peak_memory() - before
    del result
    storage.reset()
    return used
