"""What is missed of a node's cache is noticed and asked for."""

from __future__ import annotations

from mlxfleet.common.messages import KvEvents, KvSnapshot
from mlxfleet.router.cache_feed import ASK_AGAIN_S, CacheFeed
from mlxfleet.router.cache_index import CacheIndex
from tests.router.reports import make_status


class Bench:
    """A feed of one node."""

    def __init__(self) -> None:
        self.index = CacheIndex(100)
        self.feed = CacheFeed(self.index)

    def status(self, sequence: int, now: float = 0.0) -> bool:
        return self.feed.on_status(make_status("a", kv_sequence=sequence), now)

    def events(
        self,
        sequence: int,
        stored: list[int],
        *,
        removed: list[int] | None = None,
        cleared: bool = False,
    ) -> bool:
        events = KvEvents(sequence=sequence, cleared=cleared, removed=removed or [], stored=stored)
        return self.feed.on_events("a", events, 0.0)

    def snapshot(self, sequence: int, stored: list[int], *, first: bool, last: bool) -> bool:
        part = KvSnapshot(sequence=sequence, first=first, last=last, stored=stored)
        return self.feed.on_snapshot("a", part, 0.0)

    @property
    def known(self) -> set[int]:
        return set(self.index._holders)


def test_events_of_a_new_node_are_followed() -> None:
    bench = Bench()
    assert not bench.status(0)
    assert not bench.events(1, [1, 2, 3])
    assert not bench.events(2, [4], removed=[3])
    assert not bench.status(2)
    assert bench.known == {1, 2, 4}
    assert not bench.events(3, [5], cleared=True)
    assert bench.known == {5}
    assert bench.feed.gaps == bench.feed.snapshots == {}


def test_a_node_that_was_there_before_the_router_is_asked_for_everything() -> None:
    bench = Bench()
    assert bench.status(7)
    assert not bench.events(8, [1])
    assert bench.known == set()
    assert not bench.snapshot(9, [1, 2], first=True, last=True)
    assert not bench.events(10, [3])
    assert bench.known == {1, 2, 3}
    assert bench.feed.gaps == {}
    assert bench.feed.snapshots == {"a": 1}


def test_a_gap_is_asked_for_once_and_then_again() -> None:
    bench = Bench()
    bench.status(0)
    bench.events(1, [1])
    assert bench.events(3, [3])
    assert not bench.events(4, [4])
    assert not bench.status(4, now=ASK_AGAIN_S / 2)
    assert bench.status(4, now=ASK_AGAIN_S)
    assert bench.feed.gaps == {"a": 1}


def test_a_last_message_that_is_missed_shows_in_the_report() -> None:
    bench = Bench()
    bench.status(0)
    assert bench.status(1)


def test_a_snapshot_with_a_part_missing_is_asked_for_again() -> None:
    bench = Bench()
    bench.status(0)
    bench.events(1, [1])
    assert not bench.snapshot(2, [2], first=True, last=False)
    assert bench.known == {2}
    assert bench.snapshot(4, [4], first=False, last=True)
    assert not bench.snapshot(5, [5], first=False, last=True)
    assert not bench.snapshot(6, [6], first=True, last=True)
    assert bench.known == {6}
    assert not bench.status(6)


def test_a_lost_node_is_forgotten_wholly_and_asked_when_it_is_back() -> None:
    bench = Bench()
    bench.status(0)
    bench.events(1, [1])
    bench.feed.keep({"a"})
    assert bench.known == {1}
    bench.feed.keep({"b"})
    assert bench.known == set()
    assert bench.index.nodes == []
    assert not bench.events(2, [2])
    assert bench.status(2)


def test_strangers_are_ignored() -> None:
    bench = Bench()
    assert not bench.events(1, [1])
    assert not bench.snapshot(1, [1], first=True, last=True)
    assert bench.known == set()
