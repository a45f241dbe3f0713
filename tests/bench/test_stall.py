"""Which gaps of a stream count as caused by the prompts."""

from __future__ import annotations

import pytest

from mlxfleet.bench.records import Failure, Request
from mlxfleet.bench.stall import first_token_s, gaps_after


def streamed(*times: float) -> Request:
    return Request(run="", index=0, due_s=0.0, sent_s=0.0, token_times_s=list(times))


def test_gaps_that_begin_while_the_prompts_run_count() -> None:
    result = streamed(0.1, 0.2, 0.5, 0.6, 1.4, 1.5, 1.6)
    assert gaps_after(result, 0.3, 1.0) == pytest.approx([0.3, 0.1, 0.8])


def test_a_stream_that_ended_too_early_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="--stream-tokens"):
        gaps_after(streamed(0.1, 0.2, 0.3), 0.5, 1.0)


def test_a_failed_prompt_is_no_measurement() -> None:
    failed = Request(run="", index=0, due_s=0.0, sent_s=0.0, error=Failure("timeout", "too long"))
    with pytest.raises(ValueError, match="too long"):
        first_token_s(failed)
    assert first_token_s(streamed(0.4, 0.5)) == 0.4
