"""Who may start next: a bounded queue in front of the nodes, by priority and fair between API keys.

Nodes take requests in order of arrival, so what waits has to wait here for a choice to be left.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from mlxfleet.common.errors import (
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from mlxfleet.router.patience import LOOK_AGAIN_S, Wait, within

RETRY_AFTER_S = 1

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A request that wants to start. `client` names its API key without telling it; `deadline` is
    when the client gives up, in the event loop's time."""

    client: str
    model: str
    sequences: int
    priority: Priority = "interactive"
    deadline: float | None = None


@dataclass(eq=False)
class Waiting:
    """A ticket in the queue and what it waits for."""

    ticket: Ticket
    turn: asyncio.Future[None]


class Line:
    """Those who wait for the nodes of one model. `capacity` tells how many sequences may be there
    at once, None while there is no node."""

    def __init__(self, capacity: Callable[[], int | None]) -> None:
        self.capacity = capacity
        self._started: Counter[str] = Counter()
        self._queues: dict[Priority, dict[str, deque[Waiting]]] = {p: {} for p in PRIORITIES}

    def depth(self, priority: Priority) -> int:
        """Sequences of a priority that wait."""
        queues = self._queues[priority].values()
        return sum(waiting.ticket.sequences for queue in queues for waiting in queue)

    def join(self, waiting: Waiting) -> None:
        """To the end of its client's queue."""
        ticket = waiting.ticket
        self._queues[ticket.priority].setdefault(ticket.client, deque()).append(waiting)
        self.pump()

    def leave(self, waiting: Waiting) -> None:
        """Out of its queue, if it is still there."""
        ticket = waiting.ticket
        queue = self._queues[ticket.priority].get(ticket.client)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            if not queue:
                del self._queues[ticket.priority][ticket.client]

    def ended(self, ticket: Ticket) -> None:
        """A place is free again."""
        self._started[ticket.client] -= ticket.sequences
        self._started += Counter()
        self.pump()

    def pump(self) -> None:
        """Start what may start."""
        capacity = self.capacity()
        if capacity is None:
            return
        while (waiting := self._next()) is not None:
            started = self._started.total()
            if started and started + waiting.ticket.sequences > capacity:
                return
            self.leave(waiting)
            self._started[waiting.ticket.client] += waiting.ticket.sequences
            waiting.turn.set_result(None)

    def _next(self) -> Waiting | None:
        """Of the first priority in which somebody waits, the oldest of the client that has the
        fewest sequences on the nodes."""
        for priority in PRIORITIES:
            if queues := self._queues[priority]:
                client = min(queues, key=lambda name: self._started[name])
                return queues[client][0]
        return None


class Admission:
    """Counts sequences from their arrival to their end.

    `capacity` tells how many may be on the nodes of a model at once, None while there is no node;
    then a request waits `node_wait_s` for one, otherwise `max_wait_s` for a place. While a node of
    a model `loads` and gets on with it, the wait for one does not count.
    """

    def __init__(
        self,
        models: Iterable[str],
        capacity: Callable[[str], int | None],
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
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a place on the nodes, and hold it. OverloadedError after the longest wait,
        DeadlineError at the request's own deadline."""
        line = self._lines[ticket.model]
        waiting = Waiting(ticket, asyncio.get_running_loop().create_future())
        line.join(waiting)
        try:
            if not waiting.turn.done():
                await self._wait(line, waiting)
            yield
        finally:
            line.leave(waiting)
            if waiting.turn.done() and not waiting.turn.cancelled():
                line.ended(ticket)

    async def _wait(self, line: Line, waiting: Waiting) -> None:
        model = waiting.ticket.model
        for_node = Wait(
            self._node_wait_s, lambda: line.capacity() is not None or self._loads(model)
        )
        for_place = Wait(self._max_wait_s, lambda: line.capacity() is None)
        async with within(waiting.ticket.deadline):
            while not waiting.turn.done():
                now = time.monotonic()
                if for_node.over(now):
                    raise UnavailableError("no node can generate now", retry_after_s=5)
                if for_place.over(now):
                    why = f"no node had room for the request within {self._max_wait_s:g} s"
                    raise OverloadedError(why, retry_after_s=RETRY_AFTER_S)
                # Only the line decides on a turn; giving up must not look like one.
                await asyncio.wait({waiting.turn}, timeout=LOOK_AGAIN_S)

    def pump(self) -> None:
        """Start what may start: call it when a node has come, or changed."""
        for line in self._lines.values():
            line.pump()
