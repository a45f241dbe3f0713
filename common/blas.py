"""What the MLX worker needs on Linux: OpenBLAS, because MLX's own wheel links the slow reference
BLAS, and an allocator that keeps freed memory, because MLX's CPU build has no cache of buffers and
glibc would return every large one to the kernel."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

PATTERNS = (
    "/usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
)
MISSING = (
    "libopenblas is not installed: float32 models run about 80 times slower on this CPU"
    " (Debian, Ubuntu: apt-get install libopenblas0-pthread)"
)

# Idle threads wait for 2 to this power clock cycles before they sleep: long enough to be awake for
# the next product of a pass. By default it is 26, for which they keep cores from everybody else.
THREAD_TIMEOUT = "20"
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}


def find_openblas() -> Path | None:
    """The library, or None if there is none or none is needed."""
    if not sys.platform.startswith("linux"):
        return None
    for pattern in PATTERNS:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return found[0]
    return None


def worker_environment(threads: int | None) -> dict[str, str]:
    """What to add to a worker's environment; `threads` None is one per core."""
    if not sys.platform.startswith("linux"):
        return {}
    library = find_openblas()
    if library is None:
        return MALLOC
    threads = threads or os.cpu_count() or 1
    preload = " ".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    return {
        **MALLOC,
        "LD_PRELOAD": preload,
        "OPENBLAS_NUM_THREADS": str(threads),
        "OPENBLAS_THREAD_TIMEOUT": THREAD_TIMEOUT,
    }


def warn_without_openblas() -> None:
    """Say so if MLX will be slow on this machine."""
    if sys.platform.startswith("linux") and find_openblas() is None:
        log.warning(MISSING)
