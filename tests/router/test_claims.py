"""One name, two nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.router.claims import STRAY_S, TAKE_AFTER_S, NameClaims, Verdict

REPORT_S = 0.25


def test_a_name_passes_on_when_its_owner_is_gone() -> None:
    claims = NameClaims()
    assert claims.judge(b"new", 10.0, 10.1) is Verdict.WAIT
    assert claims.judge(b"new", 10.0, 10.1 + TAKE_AFTER_S) is Verdict.TAKE


def test_a_last_report_on_its_way_is_no_sign_of_life() -> None:
    claims = NameClaims()
    assert claims.judge(b"new", 10.0, 10.1) is Verdict.WAIT
    assert claims.judge(b"new", 10.2, 10.1 + TAKE_AFTER_S) is Verdict.TAKE


@given(offset=st.floats(0, REPORT_S))
def test_a_name_in_use_is_refused_before_it_could_pass_on(offset: float) -> None:
    claims = NameClaims()
    verdicts = []
    for tick in range(1, 20):
        now = tick * REPORT_S
        owner = now - offset
        verdicts.append(claims.judge(b"new", owner, now))
        if verdicts[-1] is not Verdict.WAIT:
            break
    assert verdicts[-1] is Verdict.REFUSE
    assert len(verdicts) * REPORT_S <= STRAY_S + 3 * REPORT_S


def test_two_claimants_do_not_share_their_time() -> None:
    claims = NameClaims()
    claims.judge(b"one", 10.0, 10.0)
    assert claims.judge(b"two", 10.0, 10.0 + TAKE_AFTER_S) is Verdict.WAIT
