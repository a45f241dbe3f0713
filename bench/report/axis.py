"""Axes: from values to positions, and round numbers to write beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ROUND = (1.0, 2.0, 5.0, 10.0)
# Values spread over more than this factor are shown on a logarithmic axis.
LINEAR_UP_TO = 30.0
# Room around values, as a share of their range.
MARGIN = 0.06
# Below this, values count as equal: floats could not tell their ticks apart.
LEAST_RELATIVE_SPAN = 1e-6
LEAST_SPAN = 1e-12


@dataclass(frozen=True)
class Axis:
    """A range of values. `log` needs `low` above 0; `high` is above `low`."""

    label: str
    low: float
    high: float
    log: bool = False
    count: int = 5
    """Ticks that there should be, more or less."""

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one, cut off at both."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values in the range, ascending."""
        if self.log:
            return log_ticks(self.low, self.high, self.count)
        return linear_ticks(self.low, self.high, self.count)


def axis_for(
    values: Iterable[float], label: str, *, zero: bool = False, log: bool | None = None
) -> Axis:
    """An axis that holds finite values; logarithmic if they are positive and spread widely, unless
    `log` says. A linear one begins at 0 if `zero`."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    positive = low > 0
    if log is None:
        log = positive and high > LINEAR_UP_TO * low
    if log and positive:
        low, high = (low / 1.15, high * 1.15) if high > low else (low / 2, high * 2)
        return Axis(label, low, high, log=True)
    if zero:
        low = min(low, 0.0)
    span = high - low
    if span <= max(LEAST_RELATIVE_SPAN * max(abs(high), abs(low)), LEAST_SPAN):
        span = abs(high) if abs(high) > LEAST_SPAN else 1.0
        return Axis(label, 0.0 if zero else low - span / 2, high + span / 2)
    room = MARGIN * span
    return Axis(label, low if zero and low == 0 else low - room, high + room)


def round_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that cuts a span into about `count` parts: the
    one that misses by the smallest factor."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return min((factor * power for factor in ROUND), key=lambda step: abs(math.log(step / raw)))


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of a round step from `low` to `high`."""
    step = round_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten from `low` to `high`, with their double and fivefold where there is room; of
    many only every so manieth. Less than three are too few to read, so steps are linear then."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) >= min(count, 4):
            break
    if len(ticks) < 3:
        return linear_ticks(low, high, count)
    return ticks[:: math.ceil(len(ticks) / (2 * count))]


def short(value: float) -> str:
    """A number as it stands beside a tick: 12,000 as 12k, never more than 4 digits."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
