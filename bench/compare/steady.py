"""When a server is warm."""

from __future__ import annotations

from collections.abc import Sequence


def is_steady(values: Sequence[float], windows: int, tolerance: float) -> bool:
    """Whether the last `windows` values of a figure are within `tolerance`, as a share of the
    smallest, of each other."""
    last = values[-windows:]
    return len(last) == windows and max(last) <= min(last) * (1 + tolerance)
