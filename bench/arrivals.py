"""When requests are sent: in a closed loop, or at times that do not wait for answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat

from msgspec import Struct

from mlxfleet.common.errors import ConfigError


class ClosedLoop(Struct, frozen=True, tag="closed_loop"):
    """`concurrency` users, each of whom begins a conversation when the last one has ended."""

    concurrency: int


class OpenLoop(Struct, frozen=True, tag="open_loop"):
    """A conversation begins at each of these times, in s since the start, in ascending order."""

    due_s: Sequence[float]


Arrival = ClosedLoop | OpenLoop


def gamma_times(rate: float, burstiness: float, count: int, rng: random.Random) -> list[float]:
    """`count` times in s with gamma-distributed intervals, `rate` a second on average.

    `burstiness` is the shape, as in vllm's benchmark: 1 is a Poisson process, less comes in bursts,
    more is more even. All at once for an infinite rate.
    """
    if math.isinf(rate):
        return [0.0] * count
    scale = 1 / (rate * burstiness)
    return list(accumulate(rng.gammavariate(burstiness, scale) for _ in repeat(None, count)))


def replay_times(timestamps_s: Sequence[float], speed: float) -> list[float]:
    """A trace's times from its first request on, `speed` times as fast."""
    if any(later < earlier for earlier, later in pairwise(timestamps_s)):
        raise ConfigError("--trace: timestamps are not in ascending order")
    return [(time - timestamps_s[0]) / speed for time in timestamps_s]
