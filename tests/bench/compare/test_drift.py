"""A server whose speed drifts by 30% over the run, compared with itself and with a faster one.

Each simulated run goes through the rounds, intervals and verdicts of the real command.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from statistics import fmean

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.options import DEFAULT_BLOCKS, DEFAULT_CONFIDENCE
from mlxfleet.bench.compare.order import RoundPlan, plan_rounds
from mlxfleet.bench.compare.rounds import Rounds
from mlxfleet.bench.compare.verdict import FASTER, NOTHING_SHOWN, Turn, judge
from mlxfleet.bench.records import Verdict
from mlxfleet.common.slowdown import Slowdown
from tests.bench.compare.throttled import PACE, ThrottledWorld

RATE = Figure("output_tokens_per_s")
RUNS = range(100)
# 40 turns of 36 s and more; the curve is level, falls, and is level again.
RUN_S = 2 * 2 * DEFAULT_BLOCKS * 41.0


def throttling(rng: random.Random) -> Slowdown:
    """Passes take 1.3 times as long in the end; when that begins, and how fast it is, differs."""
    begin = rng.uniform(0.05, 0.4)
    end = rng.uniform(begin + 0.1, 0.95)
    return Slowdown(((begin * RUN_S, 1.0), (end * RUN_S, 1.3)))


def simulate(seed: int, plan: Sequence[RoundPlan], true_ratio: float) -> list[Turn]:
    """The turns of a run in which B is so much faster than A."""
    rng = random.Random(f"world/{seed}")
    world = ThrottledWorld({"A": 1.0, "B": true_ratio}, throttling(rng), rng)
    rounds = Rounds(world, plan, RATE, PACE, lambda name, side: 0)
    asyncio.run(rounds.run())
    return rounds.turns


def compare(seed: int, true_ratio: float) -> Verdict:
    """The verdict of `compare`."""
    plan = plan_rounds(["A", "B"], DEFAULT_BLOCKS, random.Random(f"plan/{seed}"))
    turns = simulate(seed, plan, true_ratio)
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


def test_one_after_the_other_shows_a_difference_that_is_not_there() -> None:
    assert sum(one_after_the_other(seed) >= 0.10 for seed in RUNS) > 50


def test_no_difference_is_shown_where_there_is_none() -> None:
    verdicts = [compare(seed, 1.0).verdict for seed in RUNS]
    assert verdicts.count(NOTHING_SHOWN) >= 95


def test_a_difference_of_five_percent_is_found() -> None:
    verdicts = [compare(seed, 1.05).verdict for seed in RUNS]
    assert verdicts.count(FASTER) >= 80
