"""How the C library gives memory back to the system."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 128 * 1024


def return_large_blocks() -> None:
    """On Linux, give blocks from 128 KB on back as soon as they are freed. By default glibc raises
    that border to the size of what was freed, up to 32 MB, and what then lies between small blocks
    stays resident."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
