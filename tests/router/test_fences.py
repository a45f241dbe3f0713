"""How long a node that broke the protocol gets nothing, and who is behind its fence."""

from __future__ import annotations

import pytest

from mlxfleet.common.channels import Origin
from mlxfleet.router.fences import (
    DOUBTS_TO_FENCE,
    DOUBTS_WITHIN_S,
    FIRST_S,
    FORGIVEN_AFTER_S,
    LONGEST_S,
    MAX_FENCES,
    Fences,
)

HERE = Origin("10.0.0.7", "studio-7")


def breach(fences: Fences, now: float, name: str = "n", honest: tuple[Origin, ...] = ()) -> bool:
    return fences.breach(name, HERE, honest, "why", now)


def fenced(
    fences: Fences,
    now: float,
    name: str = "n",
    origin: Origin = HERE,
    honest: tuple[Origin, ...] = (),
) -> bool:
    return fences.closed(name, origin, honest, now) is not None


def test_a_fence_ends_and_the_next_is_longer() -> None:
    fences = Fences()
    now, pause = 0.0, FIRST_S
    for _ in range(10):
        assert breach(fences, now)
        assert fenced(fences, now + pause - 1)
        assert not fenced(fences, now + pause + 1)
        now += pause + 1
        pause = min(2 * pause, LONGEST_S)


def test_who_goes_on_stays_fenced_but_not_for_longer_each_time() -> None:
    fences = Fences()
    assert breach(fences, 0.0)
    assert not any(breach(fences, second) for second in range(50))
    assert fenced(fences, 49 + FIRST_S - 1)
    assert not fenced(fences, 49 + FIRST_S + 1)


def test_a_breach_long_ago_is_forgiven() -> None:
    fences = Fences()
    breach(fences, 0.0)
    breach(fences, FORGIVEN_AFTER_S + 1)
    assert not fenced(fences, FORGIVEN_AFTER_S + FIRST_S + 2)


@pytest.mark.parametrize(
    "origin", [Origin("10.0.0.9", "studio-7"), Origin("10.0.0.7", "another"), Origin("10.0.0.7")]
)
def test_another_name_with_the_same_key_or_address_is_behind_the_fence(origin: Origin) -> None:
    fences = Fences()
    breach(fences, 0.0)
    assert fenced(fences, 1.0, "m", origin)


def test_who_shares_nothing_with_it_is_not() -> None:
    fences = Fences()
    breach(fences, 0.0)
    assert not fenced(fences, 1.0, "m", Origin("10.0.0.9", "studio-9"))
    assert not fenced(fences, 1.0, "m", Origin())


def test_a_key_and_an_address_that_honest_nodes_share_say_nothing() -> None:
    fences = Fences()
    breach(fences, 0.0, honest=(HERE,))
    assert fenced(fences, 1.0, honest=(HERE,))
    assert not fenced(fences, 1.0, "m")


def test_this_machines_address_says_nothing() -> None:
    fences = Fences()
    fences.breach("n", Origin("127.0.0.1"), (), "why", 0.0)
    assert not fenced(fences, 1.0, "m", Origin("127.0.0.1"))


def test_an_operator_lifts_it() -> None:
    fences = Fences()
    breach(fences, 0.0)
    assert fences.lift("n", HERE)
    assert not fenced(fences, 1.0)
    assert not fences.lift("n", HERE)


def test_a_doubt_counts_when_it_repeats_soon() -> None:
    fences = Fences()
    late = [fences.doubt("n", "refusal", i * DOUBTS_WITHIN_S) for i in range(10)]
    assert not any(late)
    soon = [fences.doubt("m", "refusal", float(i)) for i in range(DOUBTS_TO_FENCE)]
    assert soon == [False] * (DOUBTS_TO_FENCE - 1) + [True]


def test_names_without_end_are_bounded() -> None:
    fences = Fences()
    for number in range(MAX_FENCES + 10):
        fences.breach(f"n{number}", Origin(), (), "why", 0.0)
        fences.doubt(f"n{number}", "error", 0.0)
    assert len(fences._fences) <= MAX_FENCES
    assert len(fences._doubts) <= MAX_FENCES + 1
