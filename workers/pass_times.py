"""How long passes take, measured when a model has been loaded: what the scheduler knows of their
costs before it has seen one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxfleet.common.messages import PassTime, Sampling
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.row import Chunk, Row
from mlxfleet.workers.sampling import SamplingRow

# Decoding rows and prompt tokens; enough to tell apart what each of them costs.
SIZES = ((1, 0), (8, 0), (0, 16), (0, 64), (0, 128))
REPEATS = 3
# Nothing larger is tried on a model that is slower than that.
LONG_PASS_S = 0.5


def measure_passes(
    storage: KVStorage,
    *,
    max_rows: int,
    max_tokens: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    on_pass: Callable[[], None] = lambda: None,
) -> list[PassTime]:
    """Time passes of these sizes, no larger than the limits; leaves the storage empty. `on_pass` is
    called after each size."""
    times = []
    for rows, tokens in sizes:
        rows, tokens = min(rows, max_rows), min(tokens, max_tokens)
        seconds = pass_seconds(storage, rows, tokens)
        times.append(PassTime(rows, tokens, seconds))
        on_pass()
        if seconds > LONG_PASS_S and tokens:
            break
    return times


def pass_seconds(storage: KVStorage, rows: int, tokens: int, repeats: int = REPEATS) -> float:
    """Seconds of the fastest of a few passes; leaves the storage empty."""
    seconds = []
    for _ in range(repeats):
        decoding = [new_row(1) for _ in range(rows)]
        prompts = [new_row(tokens + 1)] if tokens else []
        for row in decoding + prompts:
            storage.add(row)
        inputs = mx.zeros(rows, dtype=mx.uint32) if rows else None
        began = time.perf_counter()
        result = storage.run(decoding, inputs, [Chunk(row, row.token_ids[:-1]) for row in prompts])
        mx.eval(result.logits, result.arrays)
        seconds.append(time.perf_counter() - began)
        for row in decoding + prompts:
            storage.drop(row)
    storage.reset()
    return min(seconds)


def new_row(tokens: int) -> Row:
    """A row that has to prefill all but one of so many tokens."""
    ids = [0] * tokens
    return Row("", ids, SamplingRow(Sampling(seed=0, max_tokens=1), ids, 0))
