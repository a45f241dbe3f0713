"""KV storage of the running batch, behind one small interface chosen when a model is loaded.

Sequences are prefilled into caches of their own (one mlx-lm cache per layer, batch size 1) and
then join the running batch. Both storages work with any cache class that mlx-lm models make.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import CacheList, ChunkedKVCache, make_prompt_cache

log = logging.getLogger(__name__)

# Model files of mlx-lm 0.32 that run on its batch caches and give wrong tokens.
WRONG_IN_A_BATCH = {
    "afm7": "its last layers count left padding as positions",
    "minimax_m3_vl": "cuts keys into blocks where left padding puts them",
    "recurrent_gemma": "takes the zeros of a row without a state for a state",
}
# Lengths differ, and one row has no state at all. Not as many rows as gemma2 has KV heads (4, 8 or
# 16): its own attention would take the mask of a row for that of a head and not complain.
PROBE_ROWS = ([1], [1, 2, 3], [1, 2, 3, 4, 5, 6])

Cache = list[Any]
"""One mlx-lm cache object per layer."""


class RunningCache(Protocol):
    """KV state of the rows that decode together, in row order."""

    def join(self, caches: Sequence[Cache]) -> None:
        """Append rows whose prompts are prefilled."""

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""

    def forward(self, model: Any, inputs: mx.array) -> mx.array:
        """One decode step: inputs [rows] of token ids to logits [rows, vocabulary]."""


class BatchedCache:
    """mlx-lm's own batch caches: left-padded to the longest row, copied when rows change."""

    def __init__(self) -> None:
        self._layers: Cache = []

    def join(self, caches: Sequence[Cache]) -> None:
        """Append rows."""
        merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
        if not self._layers:
            self._layers = merged
            return
        for layer, more in zip(self._layers, merged, strict=True):
            layer.extend(more)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        if not rows:
            self._layers = []
            return
        for layer in self._layers:
            layer.filter(list(rows))

    def forward(self, model: Any, inputs: mx.array) -> mx.array:
        """One step for all rows together."""
        logits: mx.array = model(inputs[:, None], cache=self._layers)
        return logits[:, -1, :]


class SeparateCaches:
    """For caches that cannot be merged: rows run one after the other, at batch size 1."""

    def __init__(self) -> None:
        self._rows: list[Cache] = []

    def join(self, caches: Sequence[Cache]) -> None:
        """Append rows."""
        self._rows.extend(caches)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._rows = [self._rows[row] for row in rows]

    def forward(self, model: Any, inputs: mx.array) -> mx.array:
        """One step, row by row."""
        logits = [
            model(inputs[row : row + 1, None], cache=cache)[:, -1, :]
            for row, cache in enumerate(self._rows)
        ]
        return mx.concatenate(logits)


def can_merge(cache: Any) -> bool:
    """Whether mlx-lm can batch a cache object, and everything inside it."""
    if isinstance(cache, CacheList):
        return all(can_merge(inner) for inner in cache.caches)
    return hasattr(cache, "merge")


def choose_running_cache(model: Any) -> type[BatchedCache] | type[SeparateCaches]:
    """The storage for a model: batched if its caches can be merged and it can run on them."""
    if not all(can_merge(cache) for cache in make_prompt_cache(model)):
        return SeparateCaches
    name = type(model).__module__.rpartition(".")[2]
    if why := WRONG_IN_A_BATCH.get(name) or why_not_batched(model):
        log.warning("%s: rows will run one after the other: %s", name, why)
        return SeparateCaches
    return BatchedCache


def why_not_batched(model: Any) -> str | None:
    """What goes wrong when rows of different lengths decode together, or None. Positions taken
    from a Python number, or a mask of the wrong shape, are errors that one row alone hides."""
    caches = [prefill(model, row[:-1]) for row in PROBE_ROWS]
    running = BatchedCache()
    try:
        running.join(caches[:2])
        running.join(caches[2:])
        mx.eval(running.forward(model, mx.array([row[-1] for row in PROBE_ROWS])))
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def prefill(model: Any, token_ids: list[int]) -> Cache:
    """A new cache that holds these tokens."""
    cache: Cache = make_prompt_cache(model)
    if token_ids:
        model(mx.array(token_ids)[None], cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


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
