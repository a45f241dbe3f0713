"""Which requests the router takes, and who of them may start next.

The nodes share fairly what they have got, but only one of them has it: what can wait here can still
go to any.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from mlxfleet.common.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from mlxfleet.common.messages import Party, Priority
from mlxfleet.router.places import Capacity, Line, Place

RETRY_AFTER_S = 1
NODE_RETRY_AFTER_S = 5
SHORTEST_WAIT_S = 0.1


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

    def __init__(self, line: Line, places: list[Place], node_wait_s: float) -> None:
        self._line = line
        self._coming = iter(places)
        self._node_wait_s = max(node_wait_s, SHORTEST_WAIT_S)

    async def next(self) -> Place:
        """The place of the next sequence, when it is there. UnavailableError if there is no node
        for too long."""
        place = next(self._coming)
        while not place.given.done():
            no_node = self._line.capacity() is None
            await asyncio.wait([place.given], timeout=self._node_wait_s)
            if no_node and self._line.capacity() is None:
                raise UnavailableError("no node can generate now", retry_after_s=NODE_RETRY_AFTER_S)
        return place


class Admission:
    """Counts sequences from their arrival to their end.

    `capacity` tells how many may be on the nodes of a model at once, None while there is no node;
    then a request waits `node_wait_s` for one, otherwise `max_wait_s` for its first place.
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
    ) -> None:
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
        if self.sequences + count > self.max_sequences:
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
        places = [Place(line, party) for _ in range(ticket.sequences)]
        line.join(places)
        try:
            if not places[0].given.done():
                await self._wait(line, places[0], ticket.deadline)
            yield Turn(line, places, self._node_wait_s)
        finally:
            line.leave(places)

    async def _wait(self, line: Line, place: Place, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        no_node = line.capacity() is None
        longest = loop.time() + (self._node_wait_s if no_node else self._max_wait_s)
        until = longest if deadline is None else min(longest, deadline)
        try:
            async with asyncio.timeout_at(until):
                # Only the line gives places; giving up must not look like one.
                await asyncio.shield(place.given)
        except TimeoutError as error:
            if until != longest:
                raise DeadlineError("the request's deadline has passed while it waited") from error
            if no_node:
                why = "no node can generate now"
                raise UnavailableError(why, retry_after_s=NODE_RETRY_AFTER_S) from error
            why = f"no node had room for the request within {self._max_wait_s:g} s"
            raise OverloadedError(why, retry_after_s=RETRY_AFTER_S) from error

    def pump(self) -> None:
        """Start what may start: call it when a node has come, or changed."""
        for line in self._lines.values():
            line.pump()
