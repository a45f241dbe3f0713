"""Simulated comparisons on a machine that throttles by 30%, through the rounds, intervals and
verdicts of the real command.

`python -m tests.bench.compare.drifting [RUNS]` prints how often they are right.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Sequence
from statistics import fmean, median

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.options import DEFAULT_BLOCKS, DEFAULT_CONFIDENCE
from mlxfleet.bench.compare.order import RoundPlan, plan_rounds
from mlxfleet.bench.compare.rounds import Rounds
from mlxfleet.bench.compare.verdict import FASTER, NOTHING_SHOWN, Turn, judge
from mlxfleet.bench.records import Verdict
from mlxfleet.common.slowdown import Slowdown
from tests.bench.compare.throttled import PACE, Noise, ThrottledWorld

RATE = Figure("output_tokens_per_s")
# 10 s of pause, 6 s and more of warm-up, 20 s and more of load.
TURN_S = 41.0
QUIET = Noise()
BUSY = Noise(own=0.03, wandering=0.02, disturbed=0.05, disturbance=0.1)


def throttling(rng: random.Random, turns: int) -> Slowdown:
    """Level, slower and slower, level: passes take 1.3 times as long in the end. When that begins
    and how fast it is differs from run to run."""
    begin = rng.uniform(0.05, 0.4)
    end = rng.uniform(begin + 0.1, 0.95)
    run_s = turns * TURN_S
    return Slowdown(((begin * run_s, 1.0), (end * run_s, 1.3)))


def simulate(
    seed: int, plan: Sequence[RoundPlan], true_ratio: float, noise: Noise = QUIET
) -> list[Turn]:
    """The turns of a run in which B is so much faster than A."""
    rng = random.Random(f"world/{seed}")
    slowdown = throttling(rng, sum(len(one.order) for one in plan))
    world = ThrottledWorld({"A": 1.0, "B": true_ratio}, slowdown, rng, noise)
    rounds = Rounds(world, plan, RATE, PACE, lambda name, side: 0)
    asyncio.run(rounds.run())
    return rounds.turns


def compare(
    seed: int, true_ratio: float, noise: Noise = QUIET, blocks: int = DEFAULT_BLOCKS
) -> Verdict:
    """The verdict of `compare`."""
    plan = plan_rounds(["A", "B"], blocks, random.Random(f"plan/{seed}"))
    turns = simulate(seed, plan, true_ratio, noise)
    verdict = judge(turns, "B", "A", RATE, DEFAULT_CONFIDENCE)
    assert verdict is not None
    return verdict


def one_after_the_other(seed: int) -> float:
    """The difference that is found if all rounds of A come first, as a share."""
    count = 2 * DEFAULT_BLOCKS
    plan = [
        RoundPlan(number, number // 2, (side,))
        for number, side in enumerate(["A"] * count + ["B"] * count)
    ]
    turns = simulate(seed, plan, 1.0)
    logs = {
        side: fmean(
            math.log(turn.summary.output_tokens_per_s) for turn in turns if turn.side == side
        )
        for side in ("A", "B")
    }
    return abs(math.expm1(logs["B"] - logs["A"]))


def main(runs: int) -> None:
    """Rates over so many seeds, none of which the tests use."""
    seeds = range(1000, 1000 + runs)
    apart = sum(one_after_the_other(seed) >= 0.10 for seed in seeds)
    print(f"one after the other, false difference of 10% or more: {apart / runs:.1%}")
    for name, noise in (("quiet machine", QUIET), ("busy machine", BUSY)):
        for blocks in (8, 10, 12, 16, 24):
            same = [compare(seed, 1.0, noise, blocks) for seed in seeds]
            faster = [compare(seed, 1.05, noise, blocks) for seed in seeds]
            clear = sum(one.verdict == NOTHING_SHOWN for one in same) / runs
            found = sum(one.verdict == FASTER for one in faster) / runs
            visible = median(one.smallest_visible for one in same)
            print(
                f"{name}, {blocks} blocks: no false difference {clear:.1%},"
                f" 5% found {found:.1%}, visible {visible:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
