"""What a report warns of."""

from __future__ import annotations

import pytest

from mlxfleet.bench.figures import summarize
from mlxfleet.bench.records import ClientCost, Failure, Request
from mlxfleet.bench.summary_tables import length_warnings, print_report

SATURATED = ClientCost(
    cpu_share=0.95, event_lag_p99_ms=30, late_sends_p99_ms=0, saturated=True, why="it was late"
)


def make_request(**fields: object) -> Request:
    return Request(run="r", index=0, due_s=0.0, sent_s=0.0, duration_s=1.0, **fields)  # type: ignore[arg-type]


def test_a_saturated_client_stands_above_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    failed = make_request(error=Failure("http_500", "the node is gone"))
    requests = [make_request(output_tokens=1, token_times_s=[0.5]), failed]
    print_report("a run", summarize("r", requests, {}, SATURATED), requests)
    printed = capsys.readouterr().out
    assert printed.startswith("WARNING: The client may have been the bottleneck: it was late")
    assert "1 of 2 requests failed" in printed
    assert "http_500 x1" in printed
    assert "the node is gone" in printed


def test_other_lengths_than_were_made_are_told() -> None:
    exact = make_request(planned_input_tokens=9, input_tokens=9)
    unknown = make_request(planned_input_tokens=9)
    other = make_request(planned_input_tokens=9, input_tokens=11)
    assert length_warnings([exact, unknown]) == []
    [warning] = length_warnings([exact, other])
    assert "1 of 2 prompts, the first 11 tokens instead of 9" in warning
