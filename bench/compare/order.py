"""In which order the sides take their turns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundPlan:
    """A round: every side once, in this order. Two rounds that mirror each other are a block."""

    number: int
    block: int
    order: tuple[str, ...]


def plan_rounds(sides: Sequence[str], blocks: int, rng: random.Random) -> list[RoundPlan]:
    """Blocks of two rounds, the second in the reverse order of the first: ABBA or BAAB for two.

    All sides of a block have the same mean position, so a drift that is a straight line within it
    changes no ratio. What bends has a part left, the sign of which depends on who began. So that is
    drawn, balanced over the whole run: it cancels out on average, and what is left of it is noise
    that the interval knows. Balancing it in each pair of blocks would be neater and worse: a
    drift that swings with the period of two blocks would then always help the same side.
    """
    rounds: list[RoundPlan] = []
    for block, order in enumerate(balanced_orders(sides, blocks, rng)):
        for part in (order, order[::-1]):
            rounds.append(RoundPlan(len(rounds), block, part))
    return rounds


def balanced_orders(sides: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Rows of a balanced Latin square of the sides, each as often as the others or once more, in
    random order; with two sides, each begins half of them."""
    relabelled = rng.sample(sides, len(sides))
    rows = [tuple(relabelled[place] for place in row) for row in balanced_square(len(sides))]
    orders: list[tuple[str, ...]] = []
    while len(orders) < count:
        orders += rng.sample(rows, min(len(rows), count - len(orders)))
    rng.shuffle(orders)
    return orders


def balanced_square(size: int) -> list[list[int]]:
    """Rows in which each of 0 to `size` - 1 is in every place equally often, and follows each other
    equally often (Williams, 1949); an odd size needs the reversed rows too."""
    first = [0]
    for step in range(1, size):
        first.append((step + 1) // 2 if step % 2 else size - step // 2)
    rows = [[(place + shift) % size for place in first] for shift in range(size)]
    return rows if size % 2 == 0 else rows + [row[::-1] for row in rows]
