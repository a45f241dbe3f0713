"""What was sent counts until a report covers it, and no longer."""

from __future__ import annotations

from mlxfleet.router.loads import LOST_AFTER_S, Loads
from mlxfleet.router.policies.base import Candidate
from tests.router.reports import make_status


def candidate(loads: Loads, name: str = "a", **fields: object) -> Candidate:
    return loads.candidate(make_status(name, **fields), 0, 10, 0.0)


def make_loads(received: int = 0) -> Loads:
    loads = Loads()
    loads.report(make_status("a", received=received), 0.0, fresh=True)
    return loads


def test_what_was_sent_counts_at_once() -> None:
    loads = make_loads()
    loads.sent("a", "r", 320, 0.0)
    seen = candidate(loads, decode_step_s=1.0, decode_row_s=0.5)
    assert (seen.sequences, seen.waiting_tokens, seen.free_blocks) == (1, 320, 990)
    assert seen.decode_step_s == 1.5


def test_a_report_covers_what_the_node_had_received() -> None:
    loads = make_loads(received=5)
    for rid in "xyz":
        loads.sent("a", rid, 10, 0.0)
    loads.report(make_status("a", received=7), 0.1, fresh=False)
    assert loads.pending("a") == 1
    loads.report(make_status("a", received=8), 0.2, fresh=False)
    assert loads.pending("a") == 0


def test_the_first_token_ends_a_prompt_and_the_end_a_request() -> None:
    loads = make_loads()
    loads.sent("a", "r", 10, 0.0)
    loads.answered("r")
    assert candidate(loads).waiting_tokens == 0
    assert loads.pending("a") == 1
    loads.over("r")
    assert loads.pending("a") == 0
    loads.answered("r")
    loads.over("r")


def test_a_request_that_is_sent_again_counts_once() -> None:
    loads = make_loads()
    loads.report(make_status("b"), 0.0, fresh=True)
    loads.sent("a", "r", 10, 0.0)
    loads.sent("a", "r", 10, 0.0)
    assert loads.pending("a") == 1
    loads.sent("b", "r", 10, 0.0)
    assert (loads.pending("a"), loads.pending("b")) == (0, 1)


def test_what_never_arrived_does_not_count_for_ever() -> None:
    loads = make_loads()
    loads.sent("a", "lost", 10, 0.0)
    loads.sent("a", "late", 10, LOST_AFTER_S)
    loads.report(make_status("a", received=0), LOST_AFTER_S + 0.1, fresh=False)
    assert loads.pending("a") == 1
    loads.report(make_status("a", received=1), LOST_AFTER_S + 0.2, fresh=False)
    assert loads.pending("a") == 0


def test_a_node_that_restarts_or_is_lost_has_nothing_to_do() -> None:
    loads = make_loads()
    loads.sent("a", "r", 10, 0.0)
    loads.report(make_status("a"), 0.1, fresh=True)
    assert loads.pending("a") == 0
    loads.sent("a", "r", 10, 0.2)
    loads.keep({"b"})
    assert loads.pending("a") == 0
    loads.over("r")


def test_a_node_computes_between_its_reports() -> None:
    loads = make_loads()
    status = make_status("a", queued_prefill_tokens=100, prefill_tokens_per_s=1000.0)
    loads.report(status, 0.0, fresh=False)
    assert loads.candidate(status, 0, 10, 0.05).waiting_tokens == 50
    assert loads.candidate(status, 0, 10, 1.0).waiting_tokens == 0
