"""What a comparison found."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.intervals import least_blocks, mean_interval, smallest_visible
from mlxfleet.bench.records import Summary, Verdict

FASTER, SLOWER, NOTHING_SHOWN = "faster", "slower", "no difference shown"


@dataclass(frozen=True)
class Turn:
    """A side's turn that counts."""

    block: int
    side: str
    summary: Summary


def each_confidence(confidence: float, verdicts: int) -> float:
    """What each of several verdicts needs so that all of them are right together (Bonferroni)."""
    return 1 - (1 - confidence) / verdicts


def judge(
    turns: Sequence[Turn], side: str, against: str, figure: Figure, confidence: float
) -> Verdict | None:
    """The verdict on a side; None if there are too few whole blocks for this confidence."""
    logs = block_log_ratios(turns, side, against, figure)
    if len(logs) < least_blocks(confidence):
        return None
    found = mean_interval(logs, confidence)
    shown = FASTER if found.low > 0 else SLOWER if found.high < 0 else NOTHING_SHOWN
    return Verdict(
        side=side,
        against=against,
        figure=figure.path,
        rounds=2 * len(logs),
        ratio=math.exp(found.mean),
        low=math.exp(found.low),
        high=math.exp(found.high),
        confidence=confidence,
        verdict=shown,
        smallest_visible=math.expm1(smallest_visible(logs, found)),
        block_ratios=[math.exp(log) for log in logs],
    )


def block_log_ratios(turns: Sequence[Turn], side: str, against: str, figure: Figure) -> list[float]:
    """For each block that is whole, how much more the logarithm of the side's figure is than that
    of the other side, on average over the block's rounds; positive is better."""
    values: defaultdict[int, defaultdict[str, list[float]]]
    values = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        if (value := figure.of(turn.summary)) is not None:
            values[turn.block][turn.side].append(math.log(value))
    sign = 1 if figure.higher_is_better else -1
    return [
        sign * (fmean(block[side]) - fmean(block[against]))
        for block in values.values()
        if len(block[side]) == len(block[against]) == 2
    ]
