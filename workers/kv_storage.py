"""The one interface of KV storage, and which implementation a model gets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlxfleet.common.errors import ModelError
from mlxfleet.common.messages import Sampling
from mlxfleet.workers.kv_format import Format, LayerShape, Plain, Quantized
from mlxfleet.workers.mlx_lm_storage import (
    PROBE_ERRORS,
    PROBE_ROWS,
    Cache,
    MlxLmStorage,
    running_cache_for,
)
from mlxfleet.workers.row import Chunk, Pass, Row
from mlxfleet.workers.sampling import SamplingRow
from mlxfleet.workers.slab_storage import SlabStorage

log = logging.getLogger(__name__)

PROBED = Sampling(seed=0, max_tokens=1)
# Mean difference of logits that rounding explains, as a share of their standard deviation.
TOLERANCE_FLOAT32 = 1e-3
TOLERANCE_16_BIT = 0.1


class KVStorage(Protocol):
    """Keys and values, or whatever else a model remembers, of the worker's rows."""

    def add(self, row: Row) -> None:
        """A new row, with nothing in it."""

    def drop(self, row: Row) -> None:
        """Forget a row; one that is not here is no error. What one leaves behind that has failed
        must not reach those that come after it."""

    def reset(self) -> None:
        """Forget every row."""

    def run(
        self, decoding: Sequence[Row], inputs: mx.array | None, chunks: Sequence[Chunk]
    ) -> Pass:
        """One pass: chunks first, then a token for each decoding row: `inputs` [rows] of token
        ids, None if there are none. Between two passes rows only leave `decoding`, or join at
        its end."""

    def store(self, row: Row, start: int, blocks: Sequence[int]) -> None:
        """Copy a row's tokens from `start` on to blocks of the cold store; the last block may get
        fewer than it has room for. Does nothing if the row is gone."""

    def load(self, row: Row, blocks: Sequence[int], tokens: int) -> None:
        """Let a new row start with the first `tokens` tokens of these blocks."""


def slab_shapes(cache: Cache) -> list[LayerShape] | None:
    """Shapes of a used cache's layers, None if it holds anything but keys and values of all
    tokens."""
    if any(type(layer) is not KVCache for layer in cache):
        return None
    return [
        LayerShape(
            layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1], layer.keys.dtype
        )
        for layer in cache
    ]


def slab_layout(
    model: Any, cache: Cache, kv_bits: int | None
) -> tuple[list[LayerShape], Format] | None:
    """How a model's keys and values are laid out in slabs, None if they cannot be. `cache` is a
    used one of this model. ModelError if `kv_bits` is asked of a model that cannot have it."""
    shapes = slab_shapes(cache)
    why = "it remembers more than keys and values of all tokens"
    if shapes is not None and (why := why_not_in_slabs(model, shapes) or ""):
        log.info("no slabs: %s", why)
        shapes = None
    if shapes is None:
        if kv_bits is not None:
            raise ModelError(
                f"--kv-bits {kv_bits} is for models that run in slabs, and this one does not"
                f" ({why}); start without --kv-bits"
            )
        return None
    if kv_bits is None:
        return shapes, Plain()
    dims = [dim for shape in shapes for dim in (shape.key_dim, shape.value_dim)]
    return shapes, Quantized.for_dims(kv_bits, dims)


def why_not_in_slabs(model: Any, shapes: Sequence[LayerShape]) -> str | None:
    """What goes wrong when rows of different lengths share a pass, or None: an error, attention
    that does not come through mlx-lm's function, or other logits than alone."""
    storage = SlabStorage(model, shapes, Plain(), budget_bytes=0, cold_blocks=0)
    rows = [Row(str(i), ids, SamplingRow(PROBED, ids, 0)) for i, ids in enumerate(PROBE_ROWS)]
    chunks = [Chunk(row, row.token_ids[:-1]) for row in rows if row.prefill_tokens]
    for row in rows:
        storage.add(row)
    inputs = mx.array([row.token_ids[-1] for row in rows])
    try:
        logits = storage.run(rows, inputs, chunks).logits
        if not storage.attended_by_every_layer():
            return "its layers do not attend through scaled_dot_product_attention"
        alone = mx.concatenate([model(mx.array([row.token_ids]))[:, -1] for row in rows])
        mx.eval(logits, alone)
    except PROBE_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    assert logits is not None
    if logits.shape[1:] != alone.shape[1:] or not close(logits[: len(rows)], alone):
        return "rows that share a pass get other logits"
    return None


def close(some: mx.array, others: mx.array) -> bool:
    """Whether logits differ by no more than rounding, measured against their own spread."""
    tolerance = TOLERANCE_FLOAT32 if some.dtype == mx.float32 else TOLERANCE_16_BIT
    difference = mx.mean(mx.abs(some.astype(mx.float32) - others.astype(mx.float32)))
    return bool((difference <= tolerance * mx.std(others.astype(mx.float32))).item())


def create_storage(
    model: Any,
    layout: tuple[list[LayerShape], Format] | None,
    *,
    budget_bytes: int,
    cold_blocks: int,
    expected_rows: int = 0,
) -> KVStorage:
    """Slabs for a model with a layout, mlx-lm's caches for any other. Memory for `expected_rows`
    short rows is taken at once, if it is a small part of the budget."""
    if layout is not None:
        return SlabStorage(
            model,
            *layout,
            budget_bytes=budget_bytes,
            cold_blocks=cold_blocks,
            expected_rows=expected_rows,
        )
    running, why = running_cache_for(model)
    if why:
        name = type(model).__module__.rpartition(".")[2]
        log.warning("%s: rows will run one after the other: %s", name, why)
    return MlxLmStorage(model, running)
