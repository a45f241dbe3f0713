"""Times between tokens."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.router import metric_families as families

BORDERS_S = families.INTER_TOKEN_SECONDS.buckets


@dataclass
class Gaps:
    """How many were in each bucket, the last being above all borders, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BORDERS_S) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """One more; a value on a border belongs below it."""
        self.counts[bisect.bisect_left(BORDERS_S, seconds)] += 1
        self.total_s += seconds


class TokenGaps(Collector):
    """Those of each model. Every token is observed, so it is done with plain numbers, of which
    metrics are made when somebody asks."""

    def __init__(self) -> None:
        self.of: defaultdict[str, Gaps] = defaultdict(Gaps)

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        yield families.INTER_TOKEN_SECONDS.of_buckets(
            ((model,), gaps.counts, gaps.total_s) for model, gaps in self.of.items()
        )
