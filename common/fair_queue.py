"""Who is next where sequences wait for places: fair between clients, and between the HTTP requests
of one client. The router uses it for places on nodes, a node's scheduler for rows of its batch.

Interactive sequences are a class above batch ones: those get what the others leave, and nothing
protects them from a load of interactive ones that leaves nothing. Within a class virtual time
decides, see `virtual_time`. A sequence that starts is charged some tokens in advance, so that of
several that could take all places at once each takes its share.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from mlxfleet.common.messages import PRIORITIES, Party, Priority
from mlxfleet.common.virtual_time import Level, Share

ADVANCE_TOKENS = 64

T = TypeVar("T", bound=Hashable)
S = TypeVar("S", bound=Share)


@dataclass(eq=False, slots=True)
class Request(Share, Generic[T]):
    """An HTTP request, with those of its sequences that wait and those that hold places."""

    queue: dict[T, None] = field(default_factory=dict)
    started: dict[T, None] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Client(Share, Generic[T]):
    """A client, with its requests."""

    requests: Level[Request[T]] = field(default_factory=Level)

    def entitled(self, places: float) -> float:
        """Of so many places the share of each of its requests."""
        return max(1.0, places / max(len(self.requests), 1))

    def within_shares(self, places: float) -> float:
        """Places that its requests hold, not counting those beyond their shares of `places`."""
        most = self.entitled(places)
        return min(sum(min(request.held, most) for request in self.requests), places)


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """Where an item belongs; `number` is the order of arrival, `began` what its request had had
    when it got its place, `uncharged` are tokens that are charged before the next decision."""

    priority: Priority
    client: Client[T]
    request: Request[T]
    number: int
    began: float = 0.0
    ahead: int = 0
    started: bool = False
    uncharged: int = 0


class FairQueue(Generic[T]):
    """Items wait, then hold a place, and are charged for what is computed for them."""

    def __init__(self) -> None:
        self._classes: dict[Priority, Level[Client[T]]] = {p: Level() for p in PRIORITIES}
        self._entries: dict[T, Entry[T]] = {}
        self._numbers = itertools.count()
        self._uncharged: list[Entry[T]] = []
        self.started = 0

    def __contains__(self, item: T) -> bool:
        return item in self._entries

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._entries) - self.started

    def depth(self, priority: Priority) -> int:
        """Items of a priority that wait."""
        return sum(client.waiting for client in self._classes[priority])

    # --- what happens to items ------------------------------------------------------------------

    def push(self, item: T, party: Party) -> None:
        """An item waits, as the last of its request."""
        self._charge_all()
        clients = self._classes[party.priority]
        number = next(self._numbers)
        client = clients.get(party.client)
        if client is None:
            client = Client(party.client, party.weight, number)
            clients.enter(client)
        client.weight = party.weight
        request = client.requests.get(party.request)
        if request is None:
            request = Request(party.request, 1.0, number)
            client.requests.enter(request)
        entry = Entry(party.priority, client, request, number)
        self._entries[item] = entry
        self._wait(item, entry)

    def _wait(self, item: T, entry: Entry[T]) -> None:
        entry.request.queue[item] = None
        self._classes[entry.priority].wait(entry.client)
        entry.client.requests.wait(entry.request)

    def start(self, item: T) -> None:
        """An item that waits gets a place."""
        self._charge_all()
        entry = self._entries[item]
        del entry.request.queue[item]
        entry.request.started[item] = None
        entry.started, entry.ahead = True, ADVANCE_TOKENS
        entry.began = entry.request.order[0]
        self.started += 1
        for share in (entry.client, entry.request):
            share.held += 1
            share.ahead += ADVANCE_TOKENS
        self._wait_no_more(entry)

    def charge(self, item: T, tokens: int) -> None:
        """Tokens were computed for an item; one that is not here is nobody's."""
        entry = self._entries.get(item)
        if entry is not None:
            # This is the path of every token: the sums are made when somebody asks.
            if not entry.uncharged:
                self._uncharged.append(entry)
            entry.uncharged += tokens

    def _charge_all(self) -> None:
        """Bring all times up to date."""
        if not self._uncharged:
            return
        for entry in self._uncharged:
            tokens, entry.uncharged = entry.uncharged, 0
            in_advance = min(entry.ahead, tokens)
            entry.ahead -= in_advance
            entry.client.requests.charge(entry.request, tokens, in_advance)
            self._classes[entry.priority].charge(entry.client, tokens, in_advance)
        self._uncharged.clear()

    def discard(self, item: T) -> None:
        """An item leaves, whether it waits or holds a place, or is not here at all."""
        self._charge_all()
        entry = self._entries.pop(item, None)
        if entry is None:
            return
        if entry.started:
            self._stop(item, entry)
        else:
            del entry.request.queue[item]
            self._wait_no_more(entry)
        self._settle(entry)

    def put_back(self, item: T) -> None:
        """An item that holds a place waits again, as the first of its request."""
        self._charge_all()
        entry = self._entries[item]
        self._stop(item, entry)
        self._wait(item, entry)
        entry.request.queue = {item: None, **entry.request.queue}

    def _wait_no_more(self, entry: Entry[T]) -> None:
        self._classes[entry.priority].wait_no_more(entry.client)
        entry.client.requests.wait_no_more(entry.request)

    def _stop(self, item: T, entry: Entry[T]) -> None:
        """Take its place, and give back what it was charged in advance."""
        del entry.request.started[item]
        self.started -= 1
        for share in (entry.client, entry.request):
            share.held -= 1
            share.ahead -= entry.ahead
        entry.started, entry.ahead = False, 0

    def _settle(self, entry: Entry[T]) -> None:
        entry.client.requests.settle(entry.request)
        self._classes[entry.priority].settle(entry.client)

    # --- decisions ------------------------------------------------------------------------------

    def in_order(self) -> Iterator[T]:
        """All that wait, the next first. Ends with the first change; then ask again."""
        if not self.waiting:
            return
        self._charge_all()
        for clients in self._classes.values():
            for client in clients.waiting():
                for request in client.requests.waiting():
                    yield from request.queue

    def first(self) -> T | None:
        """The next that waits."""
        if not self.waiting:
            return None
        self._charge_all()
        for clients in self._classes.values():
            if (client := clients.next()) is not None:
                request = client.requests.next()
                assert request is not None
                return next(iter(request.queue))
        return None

    def owed(self, places: int) -> T | None:
        """The next that waits and is owed one of so many places: its request, its client and all
        together hold fewer than their shares. Places that others hold beyond their shares, or with
        a lower priority, do not count."""
        self._charge_all()
        left = float(places)
        for clients in self._classes.values():
            shares = {client.name: share_of(clients, client, left) for client in clients}
            taken = sum(client.within_shares(shares[client.name]) for client in clients)
            for client in clients.waiting() if taken + 1 <= left else ():
                share = shares[client.name]
                if client.within_shares(share) + 1 <= share:
                    most = client.entitled(share)
                    request = client.requests.next(partial(has_less, most))
                    if request is not None:
                        return next(iter(request.queue))
            left -= sum(client.held for client in clients)
        return None

    def order(self, item: T) -> tuple[int, float, float, int]:
        """Sorts items that hold places: by class, by what their clients have had, and for one
        client by what their requests had had when the items got their places. So one client's
        requests follow each other, and do not all take twice as long because they alternate."""
        self._charge_all()
        entry = self._entries[item]
        level = PRIORITIES.index(entry.priority)
        return level, entry.client.order[0], entry.began, entry.number

    def precedence(self, item: T) -> tuple[int, float, int]:
        """Sorts items that hold places: by class, by what their clients have had, and arrival. The
        last is the first to go."""
        level, had, _, number = self.order(item)
        return level, had, number

    def holds_none(self, item: T) -> bool:
        """Whether an item's request holds no place."""
        return self._entries[item].request.held == 0

    def yielding(self, item: T, places: int) -> list[T]:
        """Items that hold some of so many places and should make room for another: those of lower
        priority, then those whose client holds more than its share, or whose request does if it is
        the same client's. The first is the latest of who has had most."""
        self._charge_all()
        entry = self._entries[item]
        found: list[T] = []
        for priority in reversed(PRIORITIES[PRIORITIES.index(entry.priority) + 1 :]):
            for client in furthest(self._classes[priority]):
                found += self._latest(client.requests)
        left = float(places - self._held_above(entry.priority))
        clients = self._classes[entry.priority]
        for client in furthest(clients):
            share = share_of(clients, client, left)
            most = client.entitled(share)
            if client is entry.client or client.held > share:
                found += self._latest(r for r in client.requests if r.held > most)
            if client is not entry.client and client.held > share:
                found += self._latest(r for r in client.requests if r.held <= most)
        return found

    def _latest(self, requests: Iterable[Request[T]]) -> list[T]:
        """Items that hold places, of the request that has had most first, and there the last."""
        return [
            item
            for request in furthest(requests)
            for item in sorted(request.started, key=lambda i: -self._entries[i].number)
        ]

    def _held_above(self, priority: Priority) -> int:
        """Places that higher classes hold."""
        above = PRIORITIES[: PRIORITIES.index(priority)]
        return sum(client.held for higher in above for client in self._classes[higher])


def share_of(clients: Level[Client[T]], client: Client[T], places: float) -> float:
    """A client's share of places: at least one."""
    return max(1.0, places * client.weight / clients.weight)


def has_less(places: float, share: Share) -> bool:
    """Whether a party may have one place more and still have no more than so many."""
    return share.held + 1 <= places


def furthest(shares: Iterable[S]) -> list[S]:
    """Those that have had most first."""
    return sorted(shares, key=lambda share: share.order, reverse=True)
