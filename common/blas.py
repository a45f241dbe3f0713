"""OpenBLAS for the MLX worker on Linux, where MLX's own wheel links the slow reference BLAS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PATTERNS = (
    "/usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib64/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
)
MISSING = (
    "libopenblas is not installed: float32 models run about 80 times slower on this CPU"
    " (Debian, Ubuntu: apt-get install libopenblas0-pthread)"
)


def find_openblas() -> Path | None:
    """The library, or None if there is none or none is needed."""
    if not sys.platform.startswith("linux"):
        return None
    for pattern in PATTERNS:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return found[0]
    return None


def worker_environment(threads: int | None) -> dict[str, str]:
    """What to add to the worker's environment; `threads` None is one per core."""
    library = find_openblas()
    if library is None:
        return {}
    threads = threads or os.cpu_count() or 1
    preload = " ".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    return {"LD_PRELOAD": preload, "OPENBLAS_NUM_THREADS": str(threads)}
