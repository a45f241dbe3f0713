"""The time of day of moments that were noted on the monotonic clock."""

from __future__ import annotations

import time

AGAIN_AFTER_S = 1.0
# What lies between two readings of a clock if nothing interrupted them.
PRECISE_S = 20e-6
ATTEMPTS = 16
# Less is not followed: spans of one request must fit into each other.
STEP_NS = 1_000_000


class WallClock:
    """Turns time.monotonic() into nanoseconds since 1970. It follows when somebody sets the clock,
    or the machine has slept, which the monotonic clock of macOS does not count."""

    def __init__(self) -> None:
        self._measured = time.monotonic()
        self._offset_ns = measured_offset_ns()

    def ns(self, at: float) -> int:
        """The time of day at a moment of time.monotonic()."""
        if (now := time.monotonic()) - self._measured > AGAIN_AFTER_S:
            self._measured = now
            offset_ns = measured_offset_ns()
            if abs(offset_ns - self._offset_ns) > STEP_NS:
                self._offset_ns = offset_ns
        return int(at * 1e9) + self._offset_ns


def measured_offset_ns() -> int:
    """From the monotonic clock to the time of day. A reading that was interrupted says nothing, so
    the least disturbed of a few counts."""
    readings = []
    for _ in range(ATTEMPTS):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        readings.append((after - before, wall - (before + after) // 2))
        if after - before < PRECISE_S * 1e9:
            break
    return min(readings)[1]
