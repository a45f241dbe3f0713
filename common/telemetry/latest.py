"""What a node knows of its machine's sensors."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxfleet.common.messages import MachineSample, Telemetry

STALE_AFTER_S = 5.0


class LatestTelemetry:
    """Keeps the last sample for a node."""

    def __init__(self, node: str, now: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._now = now
        self._came_s: float | None = None
        self.last: Telemetry | None = None

    def take(self, sample: MachineSample) -> None:
        """A sample has come."""
        self.last = sample.nodes.get(self._node, sample.machine)
        self._came_s = self._now()

    @property
    def age_s(self) -> float | None:
        """Seconds since the last sample; None if there was none."""
        return None if self._came_s is None else self._now() - self._came_s

    @property
    def fresh(self) -> Telemetry | None:
        """The last sample, if it still says how the machine is."""
        age_s = self.age_s
        return self.last if age_s is not None and age_s <= STALE_AFTER_S else None
