"""How a simulated node gets slower with time, as a Mac that gets hot does."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from mlxfleet.common.errors import ConfigError

LEAST_FACTOR, MOST_FACTOR = 0.01, 1000.0


@dataclass(frozen=True)
class Slowdown:
    """A factor for the time of a pass: straight lines between `points`, (seconds since the start,
    factor), and level before the first and after the last."""

    points: tuple[tuple[float, float], ...]

    def factor(self, seconds: float) -> float:
        """The factor so many seconds after the start."""
        if seconds <= self.points[0][0]:
            return self.points[0][1]
        for (before, low), (after, high) in itertools.pairwise(self.points):
            if seconds <= after:
                return low + (high - low) * (seconds - before) / (after - before)
        return self.points[-1][1]


def parse_slowdown(text: str) -> Slowdown:
    """Read SECONDS:FACTOR,...; ConfigError says what is wrong with it."""
    points: list[tuple[float, float]] = []
    for part in text.split(","):
        seconds, colon, factor = part.partition(":")
        try:
            point = float(seconds), float(factor)
        except ValueError:
            colon, point = "", (0.0, 1.0)
        if not colon:
            raise wrong(text, f"{part.strip()!r} is not SECONDS:FACTOR")
        if not (0 <= point[0] < math.inf):
            raise wrong(text, f"{seconds.strip()} is not a number of seconds from 0 on")
        if not LEAST_FACTOR <= point[1] <= MOST_FACTOR:
            raise wrong(text, f"a factor is {LEAST_FACTOR:g} to {MOST_FACTOR:g}, not {point[1]:g}")
        if points and point[0] <= points[-1][0]:
            raise wrong(text, f"{point[0]:g} s does not come after {points[-1][0]:g} s")
        points.append(point)
    return Slowdown(tuple(points))


def wrong(text: str, why: str) -> ConfigError:
    """What the user is told."""
    return ConfigError(f"--sim-slowdown: {why} (in {text!r}); an example is 0:1,60:1.3")
