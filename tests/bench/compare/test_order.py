"""Orders are random, mirrored within a block, and balanced over the run."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.compare.order import RoundPlan, balanced_square, plan_rounds

SIDES = st.integers(2, 8).map(lambda count: list("ABCDEFGH"[:count]))


def plan(sides: list[str], blocks: int, seed: int) -> list[RoundPlan]:
    return plan_rounds(sides, blocks, random.Random(seed))


@given(SIDES, st.integers(1, 40), st.integers())
def test_blocks_are_an_order_and_its_mirror(sides: list[str], blocks: int, seed: int) -> None:
    rounds = plan(sides, blocks, seed)
    assert [one.number for one in rounds] == list(range(2 * blocks))
    for first, second in zip(rounds[::2], rounds[1::2], strict=True):
        assert first.block == second.block == first.number // 2
        assert sorted(first.order) == sides
        assert second.order == first.order[::-1]


@given(st.integers(1, 20), st.integers())
def test_each_of_two_sides_begins_half_of_the_blocks(pairs: int, seed: int) -> None:
    begins = Counter(one.order[0] for one in plan(["A", "B"], 2 * pairs, seed)[::2])
    assert begins == {"A": pairs, "B": pairs}


def test_who_begins_is_not_predictable() -> None:
    seen = {tuple(one.order[0] for one in plan(["A", "B"], 4, seed)[::2]) for seed in range(200)}
    # All ways to give each side two of four blocks.
    assert len(seen) == 6


@given(st.integers(2, 9))
def test_squares_have_each_in_each_place_and_after_each_other_equally_often(size: int) -> None:
    rows = balanced_square(size)
    for place in range(size):
        assert len(set(Counter(row[place] for row in rows).values())) == 1
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(follows) == size * (size - 1)
    assert len(set(follows.values())) == 1
