"""What the OpenBLAS tells and takes that this process was started with (common/blas.py)."""

from __future__ import annotations

import ctypes
from functools import cache

# How OpenBLAS deals out a product's rows to threads: each takes so many at once, several times.
ROWS_AT_ONCE, TIMES = 4, 2


@cache
def library() -> ctypes.CDLL | None:
    """OpenBLAS, None if this process runs without it."""
    loaded = ctypes.CDLL(None)
    try:
        loaded.openblas_get_corename.restype = ctypes.c_char_p
    except AttributeError:
        return None
    return loaded


def core_name() -> bytes:
    """The processor whose kernels are used, in OpenBLAS' words; nothing without OpenBLAS."""
    loaded = library()
    name: bytes = loaded.openblas_get_corename() if loaded is not None else b""
    return name


def threads() -> int:
    """Threads of a product; 0 without OpenBLAS."""
    loaded = library()
    return int(loaded.openblas_get_num_threads()) if loaded is not None else 0


def set_threads(number: int) -> None:
    """Let products take so many threads; does nothing without OpenBLAS."""
    loaded = library()
    if loaded is not None:
        loaded.openblas_set_num_threads(number)


def row_tile() -> int:
    """A product of this many rows, or a multiple of it, takes less time than one of a few rows
    less, where the threads' shares are uneven. 1 without OpenBLAS."""
    number = threads()
    if number > 1:
        return ROWS_AT_ONCE * TIMES * number
    return ROWS_AT_ONCE if number else 1
