"""How many of the cores the worker's matrix products may take, where they run on OpenBLAS."""

from __future__ import annotations

import ctypes
import logging
import os
import time

import mlx.core as mx

from mlxfleet.common.messages import Sampling
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.row import Row
from mlxfleet.workers.sampling import SamplingRow

log = logging.getLogger(__name__)

# Where passes are so short, router and detokenizers need a core all the time.
SHORT_PASS_S = 0.01
PASSES = 5


def leave_a_core_to_others(storage: KVStorage) -> None:
    """Take one core less if the model is so small that its passes are short. Leaves the storage
    empty; does nothing without OpenBLAS."""
    cores = os.cpu_count() or 1
    try:
        set_threads = ctypes.CDLL(None).openblas_set_num_threads
    except AttributeError:
        return
    seconds = shortest_pass(storage)
    if cores > 1 and seconds < SHORT_PASS_S:
        set_threads(cores - 1)
        log.info("a pass takes %.1f ms: %d BLAS threads", seconds * 1e3, cores - 1)


def shortest_pass(storage: KVStorage) -> float:
    """Seconds of the fastest of a few decode passes of one row."""
    row = Row("", [0], SamplingRow(Sampling(seed=0, max_tokens=1), [0], 0))
    storage.add(row)
    inputs = mx.array(row.token_ids, dtype=mx.uint32)
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        result = storage.run([row], inputs, [])
        mx.eval(result.logits, result.arrays)
        times.append(time.perf_counter() - began)
    storage.reset()
    return min(times)
