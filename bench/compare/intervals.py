"""How sure a ratio is: an interval by resampling blocks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# Up to so many blocks all subsets are looked at, beyond so many random ones.
MOST_ENUMERATED = 12
DRAWS = 9999
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """Of a mean."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """The mean of the values of blocks, and its confidence interval.

    Resamples take each block with probability one half (Hartigan, "Using subsample values as
    typical values", 1969). Their sorted means part the line into pieces that hold the true value
    equally often if values are as likely to err up as down, whatever their distribution. The
    order of sides is drawn, so they are, whatever the drift. The interval is therefore exact for
    few blocks, where percentiles of resamples with replacement are too narrow (with 10 blocks,
    95% holds 89%) and a studentized bootstrap pays with twice the width when there are outliers.

    ValueError if there are fewer blocks than `least_blocks`.
    """
    count = len(values)
    if count < least_blocks(confidence):
        raise ValueError(f"{count} blocks are too few for {confidence:.2%}")
    means = subset_means(values) if count <= MOST_ENUMERATED else drawn_means(values, seed)
    # Any piece, of which there is one more than there are means, is as likely as another.
    outside = int((1 - confidence) / 2 * (len(means) + 1) * (1 + 1e-9))
    return Interval(fmean(values), means[outside - 1], means[-outside])


def least_blocks(confidence: float) -> int:
    """How many blocks an interval of this confidence needs at least."""
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def subset_means(values: Sequence[float]) -> list[float]:
    """The means of all subsets but the empty one, in ascending order."""
    sums = [0.0]
    for value in values:
        sums += [before + value for before in sums]
    return sorted(total / mask.bit_count() for mask, total in enumerate(sums) if mask)


def drawn_means(values: Sequence[float], seed: int) -> list[float]:
    """The means of random subsets, in ascending order."""
    rng, count = random.Random(seed), len(values)
    means: list[float] = []
    while len(means) < DRAWS:
        if mask := rng.getrandbits(count):
            chosen = [value for place, value in enumerate(values) if mask >> place & 1]
            means.append(fmean(chosen))
    return sorted(means)


def smallest_visible(values: Sequence[float], found: Interval) -> float:
    """The true mean that would be told from 0 in 80 of 100 runs like this one."""
    error = stdev(values) / math.sqrt(len(values))
    return (found.high - found.low) / 2 + NormalDist().inv_cdf(POWER) * error
