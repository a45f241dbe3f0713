"""Observations counted by bucket, in a process that shows no metrics itself."""

from __future__ import annotations

import bisect
from typing import Annotated

from msgspec import Meta, Struct, field

STAGE_SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 120),
)
BUCKETS = len(STAGE_SECONDS) + 1


class Tally(Struct):
    """How many observations of seconds fell into each bucket of STAGE_SECONDS, the last being
    above all borders, and their sum."""

    counts: Annotated[list[int], Meta(min_length=BUCKETS, max_length=BUCKETS)] = field(
        default_factory=lambda: [0] * BUCKETS
    )
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """One more; a value on a border belongs below it."""
        self.counts[bisect.bisect_left(STAGE_SECONDS, seconds)] += 1
        self.total_s += seconds

    def grow(self, before: Tally, now: Tally) -> None:
        """Add what another tally has counted between two looks at it."""
        for i, (old, new) in enumerate(zip(before.counts, now.counts, strict=True)):
            self.counts[i] += new - old
        self.total_s += now.total_s - before.total_s
