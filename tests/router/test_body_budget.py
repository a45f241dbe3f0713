"""How bytes of bodies are shared out between clients."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.router.body_budget import SMALL_BYTES, BodyBudget, Lease

MB = 1_000_000
LIMIT = 64 * MB


def filled(budget: BodyBudget, client: str, size: int) -> int:
    """Give a client bodies of a size until there is no room; how many it got."""
    count = 0
    while Lease(budget, client).grow(size):
        count += 1
    return count


def test_one_client_gets_two_thirds_and_another_still_some() -> None:
    budget = BodyBudget(LIMIT)
    assert filled(budget, "greedy", MB) == 32
    assert filled(budget, "other", MB) > 8


def test_large_bodies_leave_room_for_small_ones() -> None:
    budget = BodyBudget(LIMIT)
    for client in range(20):
        filled(budget, f"greedy{client}", MB)
    assert Lease(budget, "small").grow(SMALL_BYTES)
    assert Lease(budget, "greedy0").grow(SMALL_BYTES)


def test_a_body_that_outgrows_the_small_ones_leaves_their_room() -> None:
    budget = BodyBudget(LIMIT)
    before = filled(BodyBudget(LIMIT), "small", SMALL_BYTES)
    growing = [Lease(budget, "large") for _ in range(4)]
    for lease in growing:
        assert lease.grow(SMALL_BYTES)
        assert lease.grow(1)
    assert filled(budget, "small", SMALL_BYTES) >= before - len(growing)


def test_a_body_for_which_there_is_no_room_holds_nothing() -> None:
    budget = BodyBudget(LIMIT)
    lease = Lease(budget, "a")
    assert lease.grow(10 * MB)
    assert not lease.grow(60 * MB)
    assert budget.held == 0


SIZES = st.integers(0, 20 * MB)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["grow", "release"]), SIZES), max_size=60
    )
)
def test_the_limit_holds_and_all_comes_back(steps: list[tuple[int, str, int]]) -> None:
    budget = BodyBudget(LIMIT)
    leases = [Lease(budget, f"client{number % 2}") for number in range(6)]
    for number, what, size in steps:
        if what == "grow":
            leases[number].grow(size)
        else:
            leases[number].release()
        assert budget.held == sum(lease.size for lease in leases) <= LIMIT
    for lease in leases:
        lease.release()
    assert budget.held == 0
