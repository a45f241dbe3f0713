"""Which requests the router takes, and who of them may start next.

The nodes share fairly what they have got, but only one of them has it: what can wait here can still
go to any.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from mlxfleet.common.errors import (
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from mlxfleet.common.messages import Party, Priority
from mlxfleet.router.patience import LOOK_AGAIN_S, Wait, within
from mlxfleet.router.places import Capacity, Line, Place

RETRY_AFTER_S = 1
NODE_RETRY_AFTER_S = 5
# Of the limit of sequences, how much more there is for clients that have few; a divisor.
RESERVE_SHARE = 4


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A request that wants to start. `client` names its API key without telling it, `weight` is how
    large a share that has beside others; `deadline` is when the client gives up, in the event
    loop's time."""

    client: str
    model: str
    sequences: int
    priority: Priority = "interactive"
    weight: float = 1.0
    deadline: float | None = None


class Turn:
    """A request whose first sequence may start. The others follow as they get places; they may
    take as long as they want, because the request goes on meanwhile."""

    def __init__(self, places: list[Place], for_node: Callable[[], Wait]) -> None:
        self._coming = iter(places)
        self._for_node = for_node

    async def next(self) -> Place:
        """The place of the next sequence, when it is there. UnavailableError if there is no node
        for too long."""
        place = next(self._coming)
        if place.given.done():
            return place
        for_node = self._for_node()
        while not place.given.done():
            if for_node.over(time.monotonic()):
                raise no_node()
            await asyncio.wait({place.given}, timeout=LOOK_AGAIN_S)
        return place


class Admission:
    """Counts sequences from their arrival to their end.

    `capacity` tells how many may be on the nodes of a model at once, None while there is no node;
    then a request waits `node_wait_s` for one, otherwise `max_wait_s` for its first place. While a
    node of a model `loads` and gets on with it, the wait for one does not count.
    """

    def __init__(
        self,
        models: Iterable[str],
        capacity: Callable[[str], Capacity | None],
        *,
        max_sequences: int,
        max_per_client: int | None,
        max_wait_s: float,
        node_wait_s: float,
        loads: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._loads = loads
        self._lines = {model: Line(partial(capacity, model)) for model in models}
        self.max_sequences = max_sequences
        self._max_per_client = max_per_client
        self._max_wait_s = max_wait_s
        self._node_wait_s = node_wait_s
        self._here: Counter[str] = Counter()
        self._requests = itertools.count()

    @property
    def sequences(self) -> int:
        """Sequences that are here, waiting or started."""
        return self._here.total()

    def depth(self, priority: Priority) -> int:
        """Sequences of a priority that wait."""
        return sum(line.depth(priority) for line in self._lines.values())

    @contextmanager
    def room_for(self, ticket: Ticket) -> Iterator[None]:
        """Hold room in the router for a request, from before it is tokenized; OverloadedError if
        there is none."""
        count, client = ticket.sequences, ticket.client
        if count > self.max_sequences:
            raise InvalidRequestError(
                f"the request asks for {count} sequences, at most {self.max_sequences} fit",
                param="n",
            )
        if self.sequences + count > self.max_sequences and not self._in_reserve(client, count):
            raise OverloadedError("too many requests are in flight", retry_after_s=RETRY_AFTER_S)
        limit = self._max_per_client
        if limit is not None and self._here[client] + count > limit:
            why = f"this API key has {self._here[client]} sequences in flight, and may have {limit}"
            raise OverloadedError(why, code="key_limit", retry_after_s=RETRY_AFTER_S)
        self._here[client] += count
        try:
            yield
        finally:
            self._here[client] -= count
            self._here += Counter()

    def _in_reserve(self, client: str, count: int) -> bool:
        """Whether a client that has little gets room beyond the limit, which others fill: at most
        half of what is left of the reserve."""
        reserve = max(1, self.max_sequences // RESERVE_SHARE)
        left = self.max_sequences + reserve - self.sequences
        return left > 0 and self._here[client] + count <= max(1, left // 2)

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[Turn]:
        """Wait for a place on the nodes for a request's first sequence; the others come with the
        turn, and all are left at its end. OverloadedError after the longest wait, DeadlineError at
        the request's own deadline."""
        line = self._lines[ticket.model]
        party = Party(
            client=ticket.client,
            request=str(next(self._requests)),
            weight=ticket.weight,
            priority=ticket.priority,
        )
        places = line.join(party, ticket.sequences)
        for_node = partial(self._for_node, line, ticket.model, places)
        try:
            if not places[0].given.done():
                for_place = Wait(self._max_wait_s, lambda: line.capacity() is None)
                async with within(ticket.deadline):
                    await self._wait(places[0], for_node(), for_place)
            yield Turn(places, for_node)
        finally:
            line.leave(places)

    def _for_node(self, line: Line, model: str, places: list[Place]) -> Wait:
        """The wait for a node. A request that has sequences on one, which may be draining, goes on
        with those."""
        return Wait(
            self._node_wait_s,
            lambda: (
                line.capacity() is not None
                or self._loads(model)
                or any(place.held for place in places)
            ),
        )

    async def _wait(self, place: Place, for_node: Wait, for_place: Wait) -> None:
        while not place.given.done():
            now = time.monotonic()
            if for_node.over(now):
                raise no_node()
            if for_place.over(now):
                why = f"no node had room for the request within {self._max_wait_s:g} s"
                raise OverloadedError(why, retry_after_s=RETRY_AFTER_S)
            # Only the line gives places; giving up must not look like one.
            await asyncio.wait({place.given}, timeout=LOOK_AGAIN_S)

    def pump(self) -> None:
        """Start what may start: call it when a node has come, or changed."""
        for line in self._lines.values():
            line.pump()


def no_node() -> UnavailableError:
    """The error of who has waited for a node in vain."""
    return UnavailableError("no node can generate now", retry_after_s=NODE_RETRY_AFTER_S)
