"""Places on the nodes of a model: one for each sequence, given out in fair order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mlxfleet.common.fair_queue import FairQueue
from mlxfleet.common.messages import Party, Priority


class Capacity(NamedTuple):
    """Sequences that a model's ready nodes are given: `usual` of them, and up to `most` when
    somebody holds more than its share of the usual ones and others wait."""

    usual: int
    most: int


class Place:
    """One sequence's place on the nodes: wanted, then held until it is left."""

    def __init__(self, line: Line, charge: Callable[[Place, int], None]) -> None:
        self._charge = charge
        self.given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line = line

    @property
    def held(self) -> bool:
        """Whether it was given and is not left."""
        return self.given.done() and self._line.has(self)

    def computed(self, tokens: int) -> None:
        """So many tokens were computed for the sequence."""
        self._charge(self, tokens)

    def leave(self) -> None:
        """The sequence has ended; nothing if it has left already."""
        self._line.leave([self])


class Line:
    """Those who wait for places on the nodes of one model, and those who hold some. `capacity`
    says how many there are, None while there is no node."""

    def __init__(self, capacity: Callable[[], Capacity | None]) -> None:
        self.capacity = capacity
        self._queue: FairQueue[Place] = FairQueue()

    def depth(self, priority: Priority) -> int:
        """Sequences of a priority that wait."""
        return self._queue.depth(priority)

    def join(self, party: Party, sequences: int) -> list[Place]:
        """Wait for places for so many sequences."""
        places = [Place(self, self._queue.charge) for _ in range(sequences)]
        for place in places:
            self._queue.push(place, party)
        self.pump()
        return places

    def has(self, place: Place) -> bool:
        """Whether a place is waited for or held."""
        return place in self._queue

    def leave(self, places: Iterable[Place]) -> None:
        """Wait no more, and hold none; others may have them."""
        here = [place for place in places if place in self._queue]
        for place in here:
            self._queue.discard(place)
        if here:
            self.pump()

    def pump(self) -> None:
        """Give out what there is."""
        while (place := self._next()) is not None:
            self._queue.start(place)
            place.given.set_result(None)

    def _next(self) -> Place | None:
        capacity = self.capacity() if self._queue.waiting else None
        if capacity is None:
            return None
        if self._queue.started < capacity.usual:
            return self._queue.first()
        # Who would wait for one that holds more than its share does not: the nodes share out too.
        return self._queue.owed(capacity.usual) if self._queue.started < capacity.most else None
