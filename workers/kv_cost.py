"""What mlx-lm's caches cost in bytes."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import CacheList, ChunkedKVCache

from mlxfleet.workers.mlx_lm_storage import Cache


def flatten(cache: Cache) -> list[Any]:
    """All cache objects, with lists of caches opened up."""
    flat: list[Any] = []
    for layer in cache:
        flat.extend(flatten(list(layer.caches)) if isinstance(layer, CacheList) else [layer])
    return flat


def token_bytes(cache: Any) -> int:
    """Bytes that one more token takes in a cache that holds keys and values."""
    total = 0
    for array in (cache.keys, cache.values):
        parts = array if isinstance(array, tuple | list) else (array,)
        total += sum(part.shape[1] * part.shape[-1] * part.dtype.size for part in parts)
    return total


def window_of(cache: Any) -> int | None:
    """Most tokens that a cache holds while it decodes, None if it holds all."""
    if isinstance(cache, ChunkedKVCache):
        # Trimmed before a token is added, not after.
        return int(cache.chunk_size) + 1
    size: int | None = getattr(cache, "max_size", None)
    return size


def measure(cache: Cache) -> tuple[int, int, list[tuple[int, int]]]:
    """What a used cache costs: (fixed bytes, bytes per token, [(window tokens, bytes)])."""
    fixed = per_token = 0
    windowed: dict[int, int] = {}
    for layer in flatten(cache):
        if getattr(layer, "keys", None) is not None:
            if window := window_of(layer):
                windowed[window] = windowed.get(window, 0) + token_bytes(layer)
            else:
                per_token += token_bytes(layer)
        elif tokens := getattr(layer, "offset", 0):
            # A class of the model's own: as if all of it grew.
            per_token += -(-layer.nbytes // tokens)
        else:
            fixed += layer.nbytes
    return fixed, per_token, sorted(windowed.items())
