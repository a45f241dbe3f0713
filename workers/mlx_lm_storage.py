"""KV storage in mlx-lm's own caches, which hold whatever an mlx-lm model remembers.

Rows are prefilled into caches of their own (one mlx-lm cache per layer, batch size 1) and then
join the running batch, which is merged where mlx-lm can do that and runs row by row elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import CacheList, make_prompt_cache

from mlxfleet.workers.row import Chunk, Pass, Row

# Model files of mlx-lm 0.32 that run on its batch caches and give wrong tokens.
WRONG_IN_A_BATCH = {
    "afm7": "its last layers count left padding as positions",
    "minimax_m3_vl": "cuts keys into blocks where left padding puts them",
    "recurrent_gemma": "takes the zeros of a row without a state for a state",
}
# Lengths differ, and one row has no state at all. Not as many rows as gemma2 has KV heads (4, 8 or
# 16): its own attention would take the mask of a row for that of a head and not complain.
PROBE_ROWS = ([1], [1, 2, 3], [1, 2, 3, 4, 5, 6])
# What a model raises that cannot take a cache.
PROBE_ERRORS = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)

Cache = list[Any]
"""One mlx-lm cache object per layer."""


class MlxLmStorage:
    """Storage in mlx-lm's own caches, for models that slabs cannot hold: one cache per row while
    it prefills, chunks run one by one. No cold store."""

    def __init__(self, model: Any, running: type[BatchedCache] | type[SeparateCaches]) -> None:
        self._model = model
        self.running_type = running
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        self._prefilling: dict[Row, Cache] = {}
        self._rows: list[Row] = []
        self._running: RunningCache = self.running_type()

    def add(self, row: Row) -> None:
        """A new row with empty caches."""
        self._prefilling[row] = make_prompt_cache(self._model)

    def drop(self, row: Row) -> None:
        """Forget a row; the running batch loses it with the next pass."""
        self._prefilling.pop(row, None)

    def run(
        self, decoding: Sequence[Row], inputs: mx.array | None, chunks: Sequence[Chunk]
    ) -> Pass:
        """One pass; see KVStorage."""
        for chunk in chunks:
            cache = self._prefilling[chunk.row]
            self._model(mx.array(chunk.token_ids)[None], cache=cache)
            mx.eval([layer.state for layer in cache])
        self._change_rows(decoding)
        logits = None if inputs is None else self._running.forward(self._model, inputs)
        return Pass(logits, [], None)

    def _change_rows(self, decoding: Sequence[Row]) -> None:
        """Let the running batch consist of these rows."""
        wanted = set(decoding)
        keep = [i for i, row in enumerate(self._rows) if row in wanted]
        if len(keep) < len(self._rows):
            self._running.keep(keep)
        if joining := decoding[len(keep) :]:
            self._running.join([self._prefilling.pop(row) for row in joining])
        self._rows = list(decoding)

    def store(self, row: Row, start: int, blocks: Sequence[int]) -> None:
        """Not offered: `ModelInfo.cold_blocks` is 0 for these models."""
        raise ValueError("the prefixes of this model cannot be reused")

    def load(self, row: Row, blocks: Sequence[int], tokens: int) -> None:
        """Not offered: `ModelInfo.cold_blocks` is 0 for these models."""
        raise ValueError("the prefixes of this model cannot be reused")


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


def running_cache_for(model: Any) -> tuple[type[BatchedCache] | type[SeparateCaches], str | None]:
    """Batched if the model's caches can be merged and it can run on them; else why not, if that
    is worth a warning."""
    if not all(can_merge(cache) for cache in make_prompt_cache(model)):
        return SeparateCaches, None
    name = type(model).__module__.rpartition(".")[2]
    if why := WRONG_IN_A_BATCH.get(name) or why_not_batched(model):
        return SeparateCaches, why
    return BatchedCache, None


def why_not_batched(model: Any) -> str | None:
    """What goes wrong when rows of different lengths decode together, or None. Positions taken
    from a Python number, or a mask of the wrong shape, are errors that one row alone hides."""
    caches = [prefill(model, row[:-1]) for row in PROBE_ROWS]
    running = BatchedCache()
    try:
        running.join(caches[:2])
        running.join(caches[2:])
        mx.eval(running.forward(model, mx.array([row[-1] for row in PROBE_ROWS])))
    except PROBE_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return None


def prefill(model: Any, token_ids: list[int]) -> Cache:
    """A new cache that holds these tokens."""
    cache: Cache = make_prompt_cache(model)
    if token_ids:
        model(mx.array(token_ids)[None], cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache
