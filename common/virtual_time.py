"""Virtual time: how much each of several parties has had of what they share, by weight.

This is start-time fair queueing. A party's virtual time grows by the tokens that are computed for
it, divided by its weight, and who has least is next. The level's own clock grows by what is
computed for all, divided by the weight of those that wait; who begins to wait starts there, so
that nobody collects claims while it asks for nothing. The clock moves on with every token, unlike
the least of the parties' times, so an endless stream of newcomers cannot stay in front of one that
waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

# Who begins to wait is at most so far behind the clock, however much it has had before.
MOST_DEBT_TOKENS = 1024
# Parties that have left and had more than the clock says are remembered, so many of them.
MAX_REMEMBERED = 1024


@dataclass(eq=False, slots=True)
class Share:
    """One party. `virtual` is its time, in tokens by weight; `ahead` are tokens that it has been
    given in advance and that are not computed yet. It has `held` places and waits for `waiting`
    more; `number` is the order of arrival."""

    name: str
    weight: float
    number: int
    virtual: float = 0.0
    ahead: int = 0
    waiting: int = 0
    held: int = 0

    @property
    def order(self) -> tuple[float, float, int]:
        """The least is next."""
        weight = self.weight
        return self.virtual + self.ahead / weight, self.held / weight, self.number


S = TypeVar("S", bound=Share)


class Level(Generic[S]):
    """The parties that share one thing: those that wait or hold a place."""

    def __init__(self) -> None:
        self.now = 0.0
        self._shares: dict[str, S] = {}
        self._left: dict[str, float] = {}
        self._waiting = 0
        # The weight of those that wait, or of all if nobody does; None to be added up when needed.
        self._divisor: float | None = None

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[S]:
        return iter(self._shares.values())

    def get(self, name: str) -> S | None:
        """A party that is here."""
        return self._shares.get(name)

    @property
    def weight(self) -> float:
        """Of all that are here."""
        return sum([share.weight for share in self._shares.values()])

    def waiting(self) -> list[S]:
        """Those that wait, the next first."""
        return in_order(self._those_waiting())

    def next(self, may: Callable[[S], bool] | None = None) -> S | None:
        """Of those that wait and may have a place the next."""
        waiting = self._those_waiting()
        if may is not None:
            waiting = [share for share in waiting if may(share)]
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        return min(waiting, key=by_order)

    def enter(self, share: S) -> None:
        """A party comes, or comes back."""
        self._shares[share.name] = share
        share.virtual = self._left.pop(share.name, self.now)

    def wait(self, share: S) -> None:
        """A party waits for one more place."""
        if share.waiting == 0:
            self._begin(share)
            self._waiting += 1
            self._divisor = None
        share.waiting += 1

    def _begin(self, share: S) -> None:
        """Put a party where those are that wait, or that hold places if none waits."""
        others = self._shares.values()
        if len(others) > 1:
            times = [s.virtual for s in self._those_waiting()]
            times = times or [s.virtual for s in others if s is not share]
            self.now = min(max(self.now, min(times)), max(times))
        share.virtual = min(max(share.virtual, self.now), self.now + MOST_DEBT_TOKENS)

    def wait_no_more(self, share: S) -> None:
        """A party waits for one place less; `settle` it then."""
        share.waiting -= 1
        if share.waiting == 0:
            self._waiting -= 1
            self._divisor = None

    def settle(self, share: S) -> None:
        """Let a party go that neither waits nor holds a place."""
        if share.waiting or share.held:
            return
        del self._shares[share.name]
        if not self._shares:
            # Nobody is left to whom it would owe anything.
            self.now = 0.0
            self._left.clear()
        elif share.virtual > self.now:
            self._left[share.name] = share.virtual
            if len(self._left) > MAX_REMEMBERED:
                del self._left[next(iter(self._left))]
        self._divisor = None

    def charge(self, share: S, tokens: int, in_advance: int) -> None:
        """So many tokens were computed for a party, some of them given in advance."""
        share.virtual += tokens / share.weight
        share.ahead -= in_advance
        if self._divisor is None:
            self._divisor = self._weight_that_waits()
        self.now += tokens / self._divisor

    def _weight_that_waits(self) -> float:
        """The weight of those that wait, or of all if nobody does."""
        return sum([share.weight for share in self._those_waiting()]) or self.weight

    def _those_waiting(self) -> list[S]:
        if not self._waiting:
            return []
        return [share for share in self._shares.values() if share.waiting]


by_order = attrgetter("order")


def in_order(shares: Iterable[S]) -> list[S]:
    """Those that have had least first."""
    return sorted(shares, key=by_order)
