"""Figures of requests and runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.figures import distribution, jain, percentile, summarize, tpot_s, within
from mlxfleet.bench.records import ClientCost, Failure, Request, Summary

COST = ClientCost(cpu_share=0.1, event_lag_p99_ms=0.5, late_sends_p99_ms=0.5, saturated=False)


def make_request(index: int, sent_s: float, times_s: list[float], tokens: int = 0) -> Request:
    return Request(
        run="r",
        index=index,
        conversation=index,
        due_s=sent_s,
        sent_s=sent_s,
        duration_s=times_s[-1],
        token_times_s=times_s,
        output_tokens=tokens or len(times_s),
        finish_reason="length",
    )


def summary_of(*requests: Request, slos_ms: dict[str, float] | None = None) -> Summary:
    return summarize("r", requests, slos_ms or {}, COST)


def test_percentile_lies_between_neighbours() -> None:
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile([5.0], 0.99) == 5.0
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 0.75) == 3.0


def test_distribution_of_nothing_is_none() -> None:
    assert distribution([]) is None


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_ascend_up_to_the_maximum(times_s: list[float]) -> None:
    found = distribution(times_s)
    assert found is not None
    ordered = [found.p50, found.p90, found.p95, found.p99, found.max]
    assert ordered == sorted(ordered)
    assert found.max == max(times_s) * 1000


def test_throughput_runs_from_the_first_sending_to_the_last_end() -> None:
    summary = summary_of(make_request(0, 1.0, [1.0, 2.0]), make_request(1, 3.0, [1.0, 2.0]))
    assert summary.duration_s == 4.0
    assert summary.output_tokens_per_s == 1.0
    assert summary.requests_per_s == 0.5
    assert summary.finish_reasons == {"length": 2}


def test_gaps_of_all_requests_count_together() -> None:
    summary = summary_of(make_request(0, 0.0, [1.0, 1.1]), make_request(1, 0.0, [1.0, 1.3]))
    assert summary.itl_ms is not None
    assert summary.itl_ms.mean == pytest.approx(200)
    assert summary.longest_gap_ms == pytest.approx(300)


def test_time_per_token_does_not_depend_on_tokens_per_chunk() -> None:
    assert tpot_s(make_request(0, 0.0, [1.0, 2.0], tokens=5)) == 0.25


def test_failed_request_gives_an_error_and_no_figures() -> None:
    failed = make_request(0, 0.0, [1.0, 2.0])
    failed.error = Failure("timeout", "too late")
    summary = summary_of(failed)
    assert summary.errors == {"timeout": 1}
    assert summary.output_tokens == 0
    assert summary.ttft_ms is None


def test_run_without_requests_has_a_summary() -> None:
    summary = summary_of()
    assert summary.output_tokens_per_s == 0.0
    assert summary.fairness is None


def test_cached_tokens_are_unknown_if_no_request_has_them() -> None:
    told, silent = make_request(0, 0.0, [1.0]), make_request(1, 0.0, [1.0])
    assert summary_of(silent).cached_tokens is None
    told.cached_tokens = 7
    assert summary_of(told, silent).cached_tokens == 7


def test_goodput_counts_requests_within_all_limits() -> None:
    quick, slow = make_request(0, 0.0, [0.1, 0.2]), make_request(1, 0.0, [0.1, 2.0])
    summary = summary_of(quick, slow, slos_ms={"ttft": 150, "tpot": 500})
    assert summary.within_slos == 0.5
    assert summary.goodput_per_s == 0.5


def test_limit_of_gaps_is_for_every_gap_and_of_one_token_none_is_exceeded() -> None:
    uneven = make_request(0, 0.0, [0.1, 0.2, 1.0])
    assert not within(uneven, {"itl": 500})
    assert within(uneven, {"tpot": 500, "e2e": 1000})
    assert within(make_request(0, 0.0, [0.1]), {"itl": 1, "tpot": 1})


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20))
def test_fairness_is_between_one_share_and_one(shares: list[float]) -> None:
    index = jain(shares)
    assert index is not None
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


def test_fairness_of_equals_is_one_and_of_a_monopoly_is_its_share() -> None:
    assert jain([3.0, 3.0]) == 1
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25


def test_fairness_is_of_conversations() -> None:
    first, second = make_request(0, 0.0, [1.0], 10), make_request(1, 1.0, [3.0], 30)
    second.conversation = first.conversation = 0
    other = make_request(2, 0.0, [1.0], 10)
    assert summary_of(first, second, other).fairness == 1
