"""A token bucket: how much of something may happen."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """`burst` at once, and `per_s` in the long run."""

    def __init__(
        self, per_s: float, burst: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._now = per_s, burst, now
        self._left = burst
        self._at = now()

    def take(self) -> bool:
        """Whether one more may happen now; it counts if it may."""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
