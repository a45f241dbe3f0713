"""How many of the cores the worker's matrix products may take, where they run on OpenBLAS."""

from __future__ import annotations

import logging
import os

from mlxfleet.workers import openblas
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.pass_times import pass_seconds

log = logging.getLogger(__name__)

# Where passes are so short, router and detokenizers need a core all the time.
SHORT_PASS_S = 0.01
PASSES = 5


def leave_a_core_to_others(storage: KVStorage) -> None:
    """Take one core less if the model is so small that its passes are short. Leaves the storage
    empty; does nothing without OpenBLAS."""
    cores = os.cpu_count() or 1
    if cores == 1 or not openblas.threads():
        return
    seconds = pass_seconds(storage, rows=1, tokens=0, repeats=PASSES)
    if seconds < SHORT_PASS_S:
        openblas.set_threads(cores - 1)
        log.info("a pass takes %.1f ms: %d BLAS threads", seconds * 1e3, cores - 1)
