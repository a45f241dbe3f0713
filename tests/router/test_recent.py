"""Rates and histories of the last minutes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.router.metrics import Metrics
from mlxfleet.router.recent import (
    KEPT,
    RATE_SAMPLES,
    SAMPLE_S,
    SHARE_SAMPLES,
    FleetCounts,
    NodeCounts,
    Recent,
    fleet_counts,
)

NOTHING = FleetCounts(0, 0, 0, 0, 0)


def test_nothing_is_known_before_the_first_sample() -> None:
    recent = Recent()
    assert recent.fleet().requests_per_s == 0
    assert recent.fleet().ttft_s is None
    assert recent.node("n0").tokens_per_s == []
    assert recent.node("n0").cache_hit_share is None


def test_rates_are_of_the_last_seconds() -> None:
    recent = Recent()
    recent.sample(NOTHING, {})
    for i in range(1, 3 * RATE_SAMPLES):
        recent.sample(FleetCounts(4.0 * i, i, 100.0 * i, 2.0 * i, 1.0 * i), {})
    fleet = recent.fleet()
    assert fleet.requests_per_s == 4 / SAMPLE_S
    assert fleet.tokens_per_s == 100 / SAMPLE_S
    assert fleet.ttft_s == 0.5
    assert fleet.failed == 3 * RATE_SAMPLES - 1
    assert fleet.history.tokens_per_s == [100 / SAMPLE_S] * (3 * RATE_SAMPLES - 1)


def test_rates_are_right_from_the_second_sample_on() -> None:
    recent = Recent()
    recent.sample(NOTHING, {})
    recent.sample(FleetCounts(6, 0, 0, 0, 0), {})
    assert recent.fleet().requests_per_s == 6 / SAMPLE_S


def test_the_share_of_cached_tokens_is_of_the_last_minute() -> None:
    recent = Recent()
    for cached in (0, 1000):
        recent.sample(NOTHING, {"n0": NodeCounts(1.0, cached, 0)})
    assert recent.node("n0").cache_hit_share == 1.0
    for i in range(SHARE_SAMPLES + 1):
        recent.sample(NOTHING, {"n0": NodeCounts(1.0, 1000 + i, 3 * i)})
    assert recent.node("n0").cache_hit_share == 0.25
    assert recent.fleet().cache_hit_share == 0.25


def test_the_fleets_share_is_of_all_tokens() -> None:
    recent = Recent()
    recent.sample(NOTHING, {"n0": NodeCounts(0, 0, 0), "n1": NodeCounts(0, 0, 0)})
    recent.sample(NOTHING, {"n0": NodeCounts(0, 300, 0), "n1": NodeCounts(0, 0, 100)})
    assert recent.fleet().cache_hit_share == 0.75


def test_a_restarted_node_keeps_its_history_and_counts_anew() -> None:
    recent = Recent()
    counts = [(0, 0), (50, 50), (60, 2), (60, 22)]
    for cached, prefilled in counts:
        recent.sample(NOTHING, {"n0": NodeCounts(5.0, cached, prefilled)})
    assert recent.node("n0").tokens_per_s == [5.0] * len(counts)
    assert recent.node("n0").cache_hit_share == 0.0


def test_a_forgotten_node_leaves_nothing() -> None:
    recent = Recent()
    recent.sample(NOTHING, {"n0": NodeCounts(5.0, 1, 1)})
    recent.sample(NOTHING, {})
    assert recent.node("n0").tokens_per_s == []


@given(st.lists(st.integers(0, 1000), min_size=KEPT + 10, max_size=KEPT + 30))
def test_histories_are_bounded_and_end_now(grown: list[int]) -> None:
    recent = Recent()
    tokens = 0
    for step in grown:
        tokens += step
        recent.sample(FleetCounts(0, 0, tokens, 0, 0), {"n0": NodeCounts(step, 0, 0)})
    assert recent.fleet().history.tokens_per_s == [step / SAMPLE_S for step in grown[-KEPT:]]
    assert recent.node("n0").tokens_per_s == grown[-KEPT:]


def test_counts_are_those_of_the_metrics() -> None:
    metrics = Metrics()
    for outcome in ("ok", "error", "backpressure", "cancelled"):
        with metrics.request("chat") as record:
            record.model, record.outcome = "m", outcome
    for model, seconds in (("m", 0.5), ("other", 1.5)):
        metrics.ttft.labels(model).observe(seconds)
        metrics.output_tokens.labels(model).inc(10)
    assert fleet_counts(metrics) == FleetCounts(
        requests=4, failed=2, tokens=20, first_tokens=2, ttft_s=2.0
    )
