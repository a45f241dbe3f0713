"""Verdicts: ratios of whole blocks, with the better side above 1."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mlxfleet.bench.compare.figure import Figure, all_paths, parse_figure
from mlxfleet.bench.compare.verdict import (
    FASTER,
    NOTHING_SHOWN,
    SLOWER,
    Turn,
    block_log_ratios,
    each_confidence,
    judge,
)
from mlxfleet.bench.records import Distribution
from mlxfleet.common.errors import ConfigError
from tests.bench.compare.throttled import summary

RATE, TTFT = Figure("output_tokens_per_s"), Figure("ttft_ms.p50")


def turn(block: int, side: str, rate: float, ttft_ms: float = 10.0) -> Turn:
    times = Distribution(mean=0.0, p50=ttft_ms, p90=0.0, p95=0.0, p99=0.0, max=0.0)
    return Turn(block, side, replace(summary(1000, 1000 / rate), ttft_ms=times))


def blocks(*ratios: float) -> list[Turn]:
    """Blocks in which B is so much faster, on a machine that gets slower from turn to turn."""
    turns: list[Turn] = []
    for block, ratio in enumerate(ratios):
        for side in "ABBA":
            speed = 1000 * 0.99 ** len(turns) * (ratio if side == "B" else 1.0)
            turns.append(turn(block, side, speed, 10 / ratio if side == "B" else 10))
    return turns


def test_drift_within_a_block_cancels_out() -> None:
    verdict = judge(blocks(*[1.05] * 8), "B", "A", RATE, 0.99)
    assert verdict is not None
    assert verdict.ratio == pytest.approx(1.05)
    assert verdict.block_ratios == pytest.approx([1.05] * 8)
    assert (verdict.verdict, verdict.rounds) == (FASTER, 16)


def test_slower_and_undecided() -> None:
    slower = judge(blocks(*[0.9, 0.8] * 4), "B", "A", RATE, 0.99)
    nothing = judge(blocks(*[1.1, 0.9] * 4), "B", "A", RATE, 0.99)
    assert slower is not None
    assert nothing is not None
    assert (slower.verdict, nothing.verdict) == (SLOWER, NOTHING_SHOWN)
    assert nothing.low < 1 < nothing.high
    assert nothing.smallest_visible > 0.1


def test_a_shorter_time_is_better() -> None:
    verdict = judge(blocks(*[1.25] * 8), "B", "A", TTFT, 0.99)
    assert verdict is not None
    assert verdict.ratio == pytest.approx(1.25)
    assert verdict.verdict == FASTER


def test_a_block_that_was_cut_short_does_not_count() -> None:
    turns = blocks(*[1.0] * 3)[:-1]
    assert len(block_log_ratios(turns, "B", "A", RATE)) == 2


def test_too_few_blocks_give_no_verdict() -> None:
    assert judge(blocks(*[1.05] * 7), "B", "A", RATE, 0.99) is None


def test_several_verdicts_share_what_may_go_wrong() -> None:
    assert each_confidence(0.99, 1) == 0.99
    assert each_confidence(0.99, 4) == pytest.approx(0.9975)


def test_figures_are_fields_of_the_summary() -> None:
    assert "ttft_ms.p50" in all_paths()
    assert "output_tokens_per_s" in all_paths()
    assert {path.split(".")[0] for path in all_paths()} <= set(summary(1, 1.0).__struct_fields__)
    assert parse_figure("e2e_ms.p99").of(summary(1, 1.0)) is None
    with pytest.raises(ConfigError, match=r"there are .*tpot_ms\.p90"):
        parse_figure("tokens")
