"""Figures of a load run."""

from __future__ import annotations

import pytest

from mlxfleet.bench.result import Distribution, Failure, RequestResult, percentile, summarize


def make_request(index: int, start_s: float, times_s: list[float]) -> RequestResult:
    return RequestResult(
        index=index,
        start_s=start_s,
        duration_s=times_s[-1],
        chunk_times_s=times_s,
        finish_reason="length",
    )


def test_percentile_lies_between_neighbours() -> None:
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile([5.0], 0.99) == 5.0
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 0.75) == 3.0


def test_distribution_of_nothing_is_none() -> None:
    assert Distribution.of([]) is None


def test_throughput_runs_from_the_first_start_to_the_last_end() -> None:
    summary = summarize([make_request(0, 1.0, [1.0, 2.0]), make_request(1, 3.0, [1.0, 2.0])])
    assert summary.duration_s == 4.0
    assert summary.output_tokens_per_s == 1.0
    assert summary.requests_per_s == 0.5
    assert summary.finish_reasons == {"length": 2}


def test_gaps_of_all_requests_count_together() -> None:
    summary = summarize([make_request(0, 0.0, [1.0, 1.1]), make_request(1, 0.0, [1.0, 1.3])])
    assert summary.itl_ms is not None
    assert summary.itl_ms.mean == pytest.approx(200)
    assert summary.itl_ms.max == pytest.approx(300)


def test_time_per_token_does_not_depend_on_tokens_per_chunk() -> None:
    request = make_request(0, 0.0, [1.0, 2.0])
    request.usage_tokens = 5
    assert request.tpot_s == 0.25


def test_failed_request_gives_an_error_and_no_figures() -> None:
    failed = make_request(0, 0.0, [1.0, 2.0])
    failed.error = Failure("timeout", "too late")
    summary = summarize([failed])
    assert summary.errors == {"timeout": 1}
    assert summary.output_tokens == 0
    assert summary.ttft_ms is None


def test_run_without_requests_has_a_summary() -> None:
    assert summarize([]).output_tokens_per_s == 0.0
